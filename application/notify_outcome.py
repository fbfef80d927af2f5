"""Notify the backend once of a job's outcome."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from application.journal import JobRecord
from application.lease import Lease
from application.ports import (
    BlobDenied,
    Clock,
    Notifier,
    NotifierRejected,
    NotifierUnavailable,
    Unavailable,
)
from application.retry import POLL_SECONDS, backoff, retry, sleep
from application.settlement import Ack, DeadLetter, Requeue, Settlement
from application.stop_signal import StopSignal
from domain.job import TrainingJob

log = logging.getLogger(__name__)

MAX_CALL_SECONDS = 10.0
"""Seconds that a call may take. A worker whose process ends sooner starts no call: the next
worker would repeat it, and the artist could be notified twice."""


@dataclass(frozen=True, kw_only=True)
class OutcomeNotifier:
    """Sends a job's outcome webhook.

    After connection errors, timeouts, 408, 429 and 5xx the call is retried with jittered
    exponential backoff, not sooner than ``Retry-After``. If the response was lost or late, the
    call may have arrived. So before each retry, by this worker or the next, ``has_arrived`` is
    checked. If its result is unknown, the call is repeated: a lost call would leave the style in
    training forever.
    """

    notifier: Notifier
    clock: Clock
    random: Callable[[], float]
    """A number from 0 up to 1, for the jitter."""
    tries: int = 4
    """Number of calls, including the first, before the message is retried later."""
    first_pause: float = 1.0
    """Seconds before the second try; doubled for each further try."""
    max_pause: float = 15.0
    """Longest pause in seconds. After a longer ``Retry-After`` the message is retried later."""

    def __call__(self, record: JobRecord, lease: Lease, stop: StopSignal) -> Settlement:
        """Make the call, and record the result.

        The job's record is written before each try and after the last. These writes are
        conditional: of two workers that both claim the job, one fails here.

        Args:
            lease: renewed before each try for longer than it can take.
            stop: the worker's; once set, failed calls are not retried. A decided job ignores
                cancellation.

        Raises:
            Unavailable: the backend or the store is unavailable; the job stays ``NOTIFYING``.
            LeaseLost: another worker has the job.
        """
        # Also after a stop: a late progress call would make a finished style look unfinished.
        while (left := lease.in_flight_until - self.clock.monotonic()) > 0:
            if self._too_late(stop, left):
                return Requeue()
            self.clock.sleep(min(left, POLL_SECONDS))
        failures = 0
        while True:
            if self._too_late(stop):
                return Requeue()
            lease.renew_if_due(stop)
            if record.job.notifications:
                if self._has_arrived(record.job):
                    log.info("the outcome webhook for style %d has arrived", record.job.style_id)
                    break
                if self._too_late(stop):
                    return Requeue()
            record.apply(record.job.begin_notification())
            if not lease.is_valid:
                # This process was suspended: another worker may have taken over and called.
                continue
            try:
                self._call(record.job)
            except NotifierRejected as error:
                return DeadLetter(f"the backend rejects the outcome: {error}")
            except NotifierUnavailable as error:
                failures += 1
                self._pause(failures, error, record.job, stop)
            else:
                break
        # If this is not recorded, the next attempt repeats the call. So retry without a limit and
        # ignore ``stop``: SHUTDOWN_TIMEOUT ends the process anyway.
        finish, errors = partial(record.apply, record.job.finish()), (Unavailable, BlobDenied)
        retry(finish, self.clock, StopSignal(), math.inf, errors)
        return Ack()

    def _too_late(self, stop: StopSignal, wait: float = 0.0) -> bool:
        return stop.deadline - self.clock.monotonic() - wait < MAX_CALL_SECONDS

    def _call(self, job: TrainingJob) -> None:
        if job.failure is not None:
            self.notifier.failed(job.task_id, job.style_id, job.failure)
        else:
            assert job.artifact is not None  # invariant of the job, as is the metric
            assert job.metric is not None
            self.notifier.completed(job.task_id, job.style_id, job.artifact, job.metric)

    def _has_arrived(self, job: TrainingJob) -> bool:
        outcome = job.failure or job.artifact
        assert outcome is not None  # invariant of the job
        return self.notifier.has_arrived(job.task_id, job.style_id, outcome) is True

    def _pause(
        self, failures: int, error: NotifierUnavailable, job: TrainingJob, stop: StopSignal
    ) -> None:
        """Wait before the next try, or raise ``error`` after the last."""
        asked = error.retry_after or 0.0
        if failures >= self.tries or asked > self.max_pause:
            raise error
        pause = backoff(
            failures - 1,
            asked,
            first=self.first_pause,
            max_pause=self.max_pause,
            random=self.random,
        )
        log.warning(
            "outcome webhook for style %d: try %d of %d failed, next in %.1f s: %s",
            *(job.style_id, failures, self.tries, pause, error),
        )
        sleep(pause, self.clock, stop)
        if stop.reason is not None:
            raise error
