"""Report a run's progress to the backend."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from application.journal import Entry
from application.lease import Lease
from application.ports import Clock, Notifier, NotifierRefused, StyleGone, Unavailable
from application.stop_signal import StopReason, StopSignal
from domain.progress import Speedometer

log = logging.getLogger(__name__)

MAX_STYLE_GONE = 3
"""Consecutive progress calls with a 404 response after which the style counts as gone."""


@dataclass(kw_only=True)
class ProgressCalls:
    """Sends a run's progress to the backend."""

    notifier: Notifier
    clock: Clock
    entry: Entry
    lease: Lease
    meter: Speedometer
    stop: StopSignal
    in_flight_seconds: float
    """As ``WorkerConfig.in_flight_seconds``."""
    not_found: int = 0
    """Number of consecutive 404 responses for the style."""

    def send(self) -> None:
        """Send the progress at the measured speed, once there is one. Errors are logged."""
        progress, speed = self.entry.job.progress, self.meter.steps_per_second
        if progress is None or speed is None:
            return
        if not self.lease.is_valid:
            return  # another worker may have the job and have made the final call
        progress = replace(progress, steps_per_second=speed)
        try:
            self.notifier.progress(self.entry.job.style_id, progress)
            self.not_found = 0
        except (Unavailable, NotifierRefused) as error:
            self.not_found = self.not_found + 1 if isinstance(error, StyleGone) else 0
            if self.not_found == MAX_STYLE_GONE:
                self.stop.request(StopReason.STYLE_GONE)
            if isinstance(error, Unavailable):  # a rejected call is no longer in flight
                until = self.clock.monotonic() + self.in_flight_seconds
                self.entry.progress_in_flight_until = until
            log.warning("progress call failed and is not retried: %s", error)
