"""Speeds of several processes together."""

from __future__ import annotations

from collections.abc import Sequence

WARM_UP = 0.1
"""Share of each process's first tasks that does not count."""


def shares(tasks: int, workers: int) -> list[int]:
    """Divide the tasks among the workers."""
    return [tasks // workers + (number < tasks % workers) for number in range(workers)]


def together(ends: Sequence[Sequence[float]]) -> float:
    """Tasks per second of all processes while all of them work; if there is no such time, from the
    first task's end to the last one's.

    Args:
        ends: for each process the seconds at which its tasks ended, on one clock.
    """
    began = max(each[int(WARM_UP * len(each))] for each in ends)
    ended = min(each[-1] for each in ends)
    if ended <= began:
        began, ended = min(each[0] for each in ends), max(each[-1] for each in ends)
    within = sum(began < end <= ended for each in ends for end in each)
    return within / (ended - began)
