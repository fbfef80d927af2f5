"""Notify the backend once of the outcome of a job."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from application.journal import Entry
from application.ports import Clock, Notifier, NotifierRefused, NotifierUnavailable
from application.retry import retry, sleep
from application.settlement import Ack, DeadLetter, Requeue, Settlement
from application.stop_signal import StopSignal
from domain.job import TrainingJob

log = logging.getLogger(__name__)

SLOW_ANSWER = 10.0
"""Seconds that a call may take. A worker that ends sooner begins no call: the next worker would
repeat it, and the artist could be notified twice."""


@dataclass(frozen=True, kw_only=True)
class OutcomeNotifier:
    """Makes the final webhook call of a job.

    After connection errors, timeouts, 408, 429 and 5xx the call is tried again, with pauses that
    double and are jittered, and are never shorter than the backend asks. Some of these failures
    do not tell whether the call has arrived: its answer was lost, or late. So before a call is
    repeated, by this worker or the next, the notifier is asked whether it has arrived. Where it
    cannot tell, the call is repeated: a lost one would leave a style in training for ever.
    """

    notifier: Notifier
    clock: Clock
    random: Callable[[], float]
    """A number from 0 up to 1, for the jitter."""
    tries: int = 4
    """Calls made before the job is put aside, the first included."""
    first_pause: float = 1.0
    """Seconds before the second try, doubled before each that follows."""
    max_pause: float = 15.0
    """Seconds. A backend that asks for more is called again by a later delivery."""

    def __call__(
        self,
        entry: Entry,
        still_ours: Callable[[], None],
        lease_is_valid: Callable[[], bool],
        stop: StopSignal,
    ) -> Settlement:
        """Make the call, and record the answer.

        The intent is recorded before each try and the answer after it. Both are written only if
        nobody else has written the record since: of two workers that believe the job is theirs,
        one is stopped here.

        Args:
            still_ours: holds the job's lease for longer than a try can take, or raises.
            lease_is_valid: whether no other worker can have the job at this moment.
            stop: after it no call is repeated.

        Raises:
            Unavailable: the backend or the store is away; the job stays announcing.
            LeaseLost: another worker has the job.
        """
        # Progress that arrives after the final call would make a finished style look unfinished.
        sleep(entry.quiet_from - self.clock.monotonic(), self.clock, stop)
        failures = 0
        while True:
            if self._too_late(stop):
                return Requeue()
            still_ours()
            if entry.job.announcements:
                if self._has_arrived(entry.job):
                    log.info("the final call for style %d has arrived", entry.job.style_id)
                    break
                if self._too_late(stop):
                    return Requeue()
            entry.apply(entry.job.begin_announcement())
            if not lease_is_valid():
                # This process was paused: a worker that took the job over may have called.
                continue
            try:
                self._call(entry.job)
            except NotifierRefused as error:
                return DeadLetter(f"the backend refuses the outcome: {error}")
            except NotifierUnavailable as error:
                failures += 1
                self._pause(failures, error, entry.job, stop)
            else:
                break
        # A failure here would repeat the call on the next attempt, so nothing else matters now,
        # not even a stop: SHUTDOWN_TIMEOUT ends the process anyway.
        retry(
            lambda: entry.apply(entry.job.conclude()), self.clock, StopSignal(), timeout=math.inf
        )
        return Ack()

    def _too_late(self, stop: StopSignal) -> bool:
        return stop.deadline - self.clock.monotonic() < SLOW_ANSWER

    def _call(self, job: TrainingJob) -> None:
        if job.failure is not None:
            self.notifier.failed(job.task_id, job.style_id, job.failure)
        else:
            assert job.artifact is not None  # the job's own invariants hold both
            assert job.metric is not None
            self.notifier.completed(job.task_id, job.style_id, job.artifact, job.metric)

    def _has_arrived(self, job: TrainingJob) -> bool:
        outcome = job.failure or job.artifact
        assert outcome is not None  # the job's own invariants hold one
        return self.notifier.has_arrived(job.task_id, job.style_id, outcome) is True

    def _pause(
        self, failures: int, error: NotifierUnavailable, job: TrainingJob, stop: StopSignal
    ) -> None:
        """Wait for the next try, or raise ``error`` where there is none."""
        asked = error.retry_after or 0.0
        if failures >= self.tries or asked > self.max_pause:
            raise error
        longest = min(self.max_pause, self.first_pause * 2.0 ** (failures - 1))
        pause = max(asked, longest * (0.5 + 0.5 * self.random()))
        log.warning(
            "final call for style %d: try %d of %d failed, next in %.1f s: %s",
            *(job.style_id, failures, self.tries, pause, error),
        )
        sleep(pause, self.clock, stop)
        if stop.reason is not None:
            raise error
