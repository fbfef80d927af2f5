"""A request to stop work, with its reason; safe across threads and signal handlers."""

from __future__ import annotations

import math
from enum import IntEnum


class StopReason(IntEnum):
    """Why a job should stop. A higher one overrides a lower one."""

    SHUTDOWN = 1
    """The worker shuts down: store a checkpoint and requeue the message."""
    CANCELLED = 2
    """The job was cancelled."""
    STYLE_GONE = 3
    """The style was deleted in the backend: send no outcome webhook."""
    LEASE_LOST = 4
    """Another worker has the job: write nothing more."""


class StopSignal:
    """Set from any thread, polled between two steps. A child also returns its parent's reason.

    Uses plain attribute writes without a lock, so that a signal handler can set it at any time.
    """

    def __init__(self, parent: StopSignal | None = None) -> None:
        self._parent = parent
        self._own: StopReason | None = None
        self._deadline = math.inf

    def request(self, reason: StopReason, *, deadline: float = math.inf) -> None:
        """Request a stop.

        Args:
            deadline: monotonic time in seconds at which the process ends.
        """
        self._deadline = min(self._deadline, deadline)
        if self._own is None or reason > self._own:
            self._own = reason

    @property
    def reason(self) -> StopReason | None:
        """The highest reason requested, or None to continue."""
        inherited = self._parent.reason if self._parent else None
        return max((r for r in (self._own, inherited) if r is not None), default=None)

    @property
    def deadline(self) -> float:
        """Monotonic time at which the process ends; infinite if unknown."""
        inherited = self._parent.deadline if self._parent else math.inf
        return min(self._deadline, inherited)

    def check(self) -> None:
        """Raise ``Stopped`` if a stop was requested."""
        if (reason := self.reason) is not None:
            raise Stopped(reason)


class Stopped(Exception):
    """Work ended early because a stop was requested."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason.name.lower())
        self.reason = reason
