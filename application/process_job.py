"""What every job needs: hold its lease, decide its outcome, and notify the backend once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from application.fenced_blob import RecordDamaged
from application.job_store import JobStore
from application.journal import Entry, RecordNewer
from application.lease import Lease, LeaseHeld, LeaseLost
from application.notify_outcome import OutcomeNotifier
from application.ports import BlobDenied, Clock, Unavailable
from application.retry import backoff, retry
from application.settlement import DeadLetter, Requeue, RetryLater, Settlement
from application.stop_signal import Stopped, StopReason, StopSignal
from application.task_record import TaskDiffers
from application.worker_config import WorkerConfig
from domain.job import UNDECIDED

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HeldJob:
    """A job whose lease this worker holds."""

    entry: Entry
    lease: Lease
    stop: StopSignal
    """Also set if the job is cancelled or the lease is lost."""
    worker_stop: StopSignal
    clock: Clock
    config: WorkerConfig
    notify_outcome: OutcomeNotifier

    def announce(self) -> Settlement:
        """Notify the backend of the decided outcome.

        A decided job ignores cancellation: only a stop of the worker counts.

        Raises:
            Unavailable, LeaseLost: as ``OutcomeNotifier``.
        """
        return self.notify_outcome(
            self.entry, self._extend, lambda: self.lease.is_valid, self.worker_stop
        )

    def _extend(self) -> None:
        retry(self.lease.extend, self.clock, self.worker_stop, self.config.upload_timeout)


def process_job(
    entry: Entry,
    decide: Callable[[HeldJob], Settlement],
    store: JobStore,
    notify_outcome: OutcomeNotifier,
    config: WorkerConfig,
    stop: StopSignal,
) -> Settlement | None:
    """Process a job under its lease.

    Args:
        decide: called if the outcome is not decided; decides and announces it.
        stop: the worker's.

    Returns:
        How to settle the message; None if nothing is left to do: the outcome is decided and
        the backend is notified.

    Raises:
        LeaseHeld, LeaseLost: another worker has the job.
        Stopped, Unavailable, BlobDenied, RecordNewer, RecordDamaged: as the calls made.
    """
    lease = store.lease(entry.job.task_id)
    if entry.job.is_terminal:
        log.info("task %s: nothing to do, the job is %s", entry.job.task_id, entry.job.state)
        lease.delete()  # a crashed worker may have left it
        return None
    job_stop = StopSignal(stop)
    with lease.hold(job_stop, is_finished=lambda: entry.job.is_terminal):
        entry.load()
        store.check_weights(entry.job)
        held = HeldJob(
            entry=entry,
            lease=lease,
            stop=job_stop,
            worker_stop=stop,
            clock=store.clock,
            config=config,
            notify_outcome=notify_outcome,
        )
        if entry.job.state in UNDECIDED:
            return decide(held)
        if not entry.job.is_terminal:
            settlement = held.announce()
            if not entry.job.is_terminal:
                return settlement
    return None


def settlement_after(
    error: Exception, about: str, *, retries: int, config: WorkerConfig, stop: StopSignal
) -> Settlement:
    """How to settle a message whose processing raised ``error``.

    Args:
        about: names the message in the log.
        retries: number of earlier retries of the message.
        stop: the worker's.
    """
    match error:
        case TaskDiffers():
            return DeadLetter(str(error), error.details)
        case Stopped():
            return Requeue()
        case LeaseHeld():
            return RetryLater(error.retry_after, str(error), elsewhere=True)
        case LeaseLost():
            return RetryLater(config.lease.seconds, str(error), elsewhere=True)
        case Unavailable():
            if stop.reason is StopReason.SHUTDOWN:
                return Requeue()
            return RetryLater(backoff(retries, error.retry_after), str(error))
        case RecordNewer():
            return RetryLater(backoff(retries), str(error))
        case BlobDenied() | RecordDamaged():
            # Retry, since both may be temporary: a denied bucket affects every task, and a proxy's
            # error page in place of the store's response looks like a damaged record.
            if retries >= config.max_retries:
                return DeadLetter(str(error))
            return RetryLater(backoff(retries), str(error))
    log.error("%s: unexpected error", about, exc_info=error)
    reason = f"{type(error).__name__}: {error}"
    if retries >= config.max_retries:
        return DeadLetter(f"after {retries} retries: {reason}")
    return RetryLater(backoff(retries), reason, unexpected=True)
