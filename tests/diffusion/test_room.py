"""How many styles a card has room for."""

from __future__ import annotations

import pytest

from adapters.diffusion.together.room import MOST_SEATS, seats_in

GIB = 2**30


@pytest.mark.parametrize(
    ("gib", "slots"), [(0, 1), (4, 1), (6, 3), (8, 6), (12, MOST_SEATS), (140, MOST_SEATS)]
)
def test_a_larger_card_seats_more_and_any_card_one(gib: int, slots: int) -> None:
    assert seats_in(gib * GIB) == slots
