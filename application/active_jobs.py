"""What somebody who looks on keeps of each job that a worker has in hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Kept(Generic[T]):
    what: T
    looked_at_by: int = 1


class ActiveJobs(Generic[T]):
    """One thing for each job in hand, by task id, in the order in which they were taken up.

    A message may come twice, so that two threads look at one task: it is in hand until the last
    of them has put it down. A job that is only heard of by its events, as that of a message that
    is refused, is in hand until its thread puts the message down.

    Whoever shares it between threads locks it.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept[T]] = {}
        self._heard_by: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[T]:
        return (kept.what for kept in self._kept.values())

    def get(self, task_id: str) -> T | None:
        """What is kept of a job, if it is in hand."""
        kept = self._kept.get(task_id)
        return None if kept is None else kept.what

    def take_up(self, task_id: str, make: Callable[[], T]) -> T:
        """A thread takes a task up; ``make`` is asked where nobody else has it."""
        kept = self._kept.get(task_id)
        if kept is None:
            kept = self._kept[task_id] = _Kept(make())
        else:
            kept.looked_at_by += 1
        return kept.what

    def hear(self, task_id: str, make: Callable[[], T]) -> T:
        """Something happened to a job, which may be the first that is heard of it."""
        kept = self._kept.get(task_id)
        if kept is None:
            kept = self._kept[task_id] = _Kept(make())
            self._heard_by[threading.get_ident()] = task_id
        return kept.what

    def end(self, task_id: str) -> None:
        """An event says that a job is over: nobody has it in hand any more."""
        self._kept.pop(task_id, None)

    def put_down(self, task_id: str | None) -> T | None:
        """A thread puts a message down; None is the task of one that described none.

        Returns:
            What was kept of its job, if the job is now out of hand, and was not before.
        """
        heard = self._heard_by.pop(threading.get_ident(), None)
        task_id = task_id or heard
        kept = self._kept.get(task_id) if task_id else None
        if task_id is None or kept is None:
            return None
        kept.looked_at_by -= 1
        return None if kept.looked_at_by else self._kept.pop(task_id).what
