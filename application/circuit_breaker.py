"""A worker on which every job fails by a defect takes no tasks, so that healthy ones get them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from application.ports import Clock

DEFECTS = 3
"""Different tasks in a row, each ended by a defect, after which the worker pauses."""
FIRST_PAUSE = 60.0
"""Seconds; each further defect doubles them."""
MAX_PAUSE = 1800.0


@dataclass
class CircuitBreaker:
    """Counts the tasks that defects ended, one after the other. May be used from any thread.

    A single task that fails again and again says something about the task; several different
    ones say something about the worker: a broken driver, a missing library, a full disk.
    """

    clock: Clock
    _failed: set[str] = field(default_factory=set)
    _pause: float = FIRST_PAUSE
    _closed_at: float = 0.0
    """Monotonic seconds at which the pause is over."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def succeeded(self) -> None:
        """A task ended otherwise than by a defect."""
        with self._lock:
            self._failed.clear()
            self._pause, self._closed_at = FIRST_PAUSE, 0.0

    def failed(self, task_id: str) -> None:
        """A defect ended a task."""
        with self._lock:
            self._failed.add(task_id)
            if len(self._failed) >= DEFECTS:
                self._closed_at = self.clock.monotonic() + self._pause
                self._pause = min(2 * self._pause, MAX_PAUSE)

    @property
    def trouble(self) -> str | None:
        """Why no task is to be taken now; None where nothing speaks against it."""
        with self._lock:
            left = self._closed_at - self.clock.monotonic()
            if left <= 0:
                return None
            return (
                f"{len(self._failed)} tasks in a row failed by defects: the worker pauses for "
                f"{left:.0f} s; see the log for their tracebacks"
            )
