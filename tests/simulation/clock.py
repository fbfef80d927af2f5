"""A machine's clocks in virtual time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from datetime import UTC, datetime, timedelta

from tests.simulation.timeline import Process, Timeline

log = logging.getLogger(__name__)

START = datetime(2026, 1, 1, tzinfo=UTC)


class VirtualClock:
    """Port ``Clock`` of one machine, whose wall clock may be wrong."""

    def __init__(self, timeline: Timeline, process: Process) -> None:
        self._timeline = timeline
        self._process = process
        self.wrong = 0.0
        """Seconds by which the wall clock is ahead."""

    def now(self) -> datetime:
        return START + timedelta(seconds=self._timeline.now + self.wrong)

    def monotonic(self) -> float:
        return self._timeline.now

    def sleep(self, seconds: float) -> None:
        self._timeline.sleep(seconds)

    @contextmanager
    def every(self, seconds: float, action: Callable[[], None]) -> Iterator[None]:
        running, closed = False, False
        context = copy_context()

        def repeat() -> None:
            nonlocal running
            due = self._timeline.now + seconds
            while True:
                self._timeline.sleep(due - self._timeline.now)
                if closed:
                    return
                running = True
                try:
                    context.run(action)
                except Exception:
                    log.exception("a periodic action failed")
                running = False
                due = max(due + seconds, self._timeline.now)

        self._timeline.spawn(self._process, repeat)
        try:
            yield
        finally:
            closed = True
            while running:
                self._timeline.sleep(0.01)
