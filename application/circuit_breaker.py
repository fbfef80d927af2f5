"""Pause a worker on which every job fails unexpectedly, so that healthy workers get the tasks."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from application.ports import Clock

MAX_TASKS = 3
"""Number of consecutive different tasks with unexpected errors after which the worker pauses."""
FIRST_PAUSE = 60.0
"""Seconds; each further failure doubles them."""
MAX_PAUSE = 1800.0


@dataclass
class CircuitBreaker:
    """Counts consecutive tasks that failed with an unexpected error. Thread-safe.

    Repeated failures of one task point to the task; failures of several different tasks point to
    the worker: a broken driver, a missing library, a full disk.
    """

    clock: Clock
    _failed: set[str] = field(default_factory=set)
    _pause: float = FIRST_PAUSE
    _paused_until: float = 0.0
    """Monotonic time in seconds at which the pause ends."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def succeeded(self) -> None:
        """Record a task whose message was acknowledged."""
        with self._lock:
            self._failed.clear()
            self._pause, self._paused_until = FIRST_PAUSE, 0.0

    def failed(self, task_id: str) -> None:
        """Record a task that failed with an unexpected error."""
        with self._lock:
            self._failed.add(task_id)
            if len(self._failed) >= MAX_TASKS:
                self._paused_until = self.clock.monotonic() + self._pause
                self._pause = min(2 * self._pause, MAX_PAUSE)

    @property
    def pause_reason(self) -> str | None:
        """Why the worker is paused; None if it is not."""
        with self._lock:
            left = self._paused_until - self.clock.monotonic()
            if left <= 0:
                return None
            return (
                f"{len(self._failed)} tasks in a row failed with unexpected errors: the worker "
                f"pauses for {left:.0f} s; see the log for their tracebacks"
            )
