"""Pause a worker on which every job fails by a defect, so that healthy workers get the tasks."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from application.ports import Clock

DEFECTS = 3
"""Number of consecutive different tasks failed by a defect after which the worker pauses."""
FIRST_PAUSE = 60.0
"""Seconds; each further defect doubles them."""
MAX_PAUSE = 1800.0


@dataclass
class CircuitBreaker:
    """Counts consecutive tasks that failed by a defect. Thread-safe.

    Repeated failures of one task point to the task; failures of several different tasks point to
    the worker: a broken driver, a missing library, a full disk.
    """

    clock: Clock
    _failed: set[str] = field(default_factory=set)
    _pause: float = FIRST_PAUSE
    _closed_at: float = 0.0
    """Monotonic time in seconds at which the pause ends."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def succeeded(self) -> None:
        """Record a task that ended without a defect."""
        with self._lock:
            self._failed.clear()
            self._pause, self._closed_at = FIRST_PAUSE, 0.0

    def failed(self, task_id: str) -> None:
        """Record a task that failed by a defect."""
        with self._lock:
            self._failed.add(task_id)
            if len(self._failed) >= DEFECTS:
                self._closed_at = self.clock.monotonic() + self._pause
                self._pause = min(2 * self._pause, MAX_PAUSE)

    @property
    def trouble(self) -> str | None:
        """Why the worker is paused; None if it is not."""
        with self._lock:
            left = self._closed_at - self.clock.monotonic()
            if left <= 0:
                return None
            return (
                f"{len(self._failed)} tasks in a row failed by defects: the worker pauses for "
                f"{left:.0f} s; see the log for their tracebacks"
            )
