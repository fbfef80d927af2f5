"""Speeds of several processes together."""

from __future__ import annotations

from collections.abc import Sequence

WARM_UP = 0.1
"""Share of each process's first tasks that does not count."""


def shares(tasks: int, workers: int) -> list[int]:
    """Divide the tasks among the workers."""
    return [tasks // workers + (number < tasks % workers) for number in range(workers)]


def together(ends: Sequence[Sequence[float]]) -> float:
    """Tasks per second of all processes, while all of them work.

    Args:
        ends: for each process the seconds at which its tasks ended, on one clock.

    Raises:
        RuntimeError: there is no such time.
    """
    began = max(each[int(WARM_UP * len(each))] for each in ends)
    ended = min(each[-1] for each in ends)
    within = sum(began < end <= ended for each in ends for end in each)
    if ended <= began or not within:
        raise RuntimeError("the processes did not work at the same time; raise --tasks")
    return within / (ended - began)
