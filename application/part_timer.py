"""Measure where a job's time goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from application.journal import Entry
from application.ports import Clock
from domain.events import PartTimed


class PartTimer:
    """Adds up the seconds of a job's parts. ``publish`` sends each sum as an event."""

    def __init__(self, entry: Entry, clock: Clock) -> None:
        self._entry = entry
        self._clock = clock
        self.seconds: dict[str, float] = {}
        """By part, since the last ``publish``."""

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the duration of the with-block to a part."""
        began = self._clock.monotonic()
        try:
            yield
        finally:
            self.add(part, self._clock.monotonic() - began)

    def add(self, part: str, seconds: float) -> None:
        """Add to a part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def publish(self) -> None:
        """Send an event for each part, and start from 0."""
        seconds, self.seconds = self.seconds, {}
        job = self._entry.job
        for part, spent in seconds.items():
            self._entry.publish(
                PartTimed(task_id=job.task_id, style_id=job.style_id, part=part, seconds=spent)
            )
