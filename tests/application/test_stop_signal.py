from __future__ import annotations

from itertools import permutations

import pytest

from application.stop_signal import StopReason, StopSignal


@pytest.mark.parametrize(("first", "then"), list(permutations(StopReason, 2)))
def test_the_weightiest_reason_counts_whichever_comes_first_and_from_whom(
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
