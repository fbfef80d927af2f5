from __future__ import annotations

from itertools import permutations

import pytest

from application.stop_signal import StopReason, StopSignal


@pytest.mark.parametrize(("first", "then"), list(permutations(StopReason, 2)))
def test_the_reason_of_highest_priority_wins_in_any_order(
    first: StopReason, then: StopReason
) -> None:
    alone, parent = StopSignal(), StopSignal()
    child = StopSignal(parent)
    alone.request(first)
    alone.request(then)
    parent.request(first)
    child.request(then)
    assert alone.reason is child.reason is max(first, then)
    assert parent.reason is first, "a child speaks for itself"
