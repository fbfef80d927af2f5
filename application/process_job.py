"""What every job needs: hold its lease, decide its outcome, and notify the backend once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from application.fenced_blob import RecordDamaged
from application.job_store import JobStore, TaskDiffers
from application.journal import JobRecord, RecordNewer
from application.lease import Lease, LeaseHeld, LeaseLost
from application.notify_outcome import OutcomeNotifier
from application.ports import BlobDenied, Unavailable
from application.retry import backoff
from application.settlement import DeadLetter, Requeue, RetryLater, Settlement
from application.stop_signal import Stopped, StopReason, StopSignal
from application.worker_config import WorkerConfig
from domain.job import UNDECIDED

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldJob:
    """A job whose lease this worker holds."""

    record: JobRecord
    lease: Lease
    stop: StopSignal
    """Set if the worker stops, the job is cancelled or the lease is lost."""
    worker_stop: StopSignal
    """Set if the worker stops."""


def process_job(
    record: JobRecord,
    decide: Callable[[HeldJob], Settlement | None],
    store: JobStore,
    notify_outcome: OutcomeNotifier,
    stop: StopSignal,
) -> Settlement | None:
    """Process a job under its lease.

    Args:
        decide: called if the outcome is not decided; decides it and returns None, or returns how
            to settle the message.
        stop: the worker's.

    Returns:
        How to settle the message; None if nothing is left to do: the outcome is decided and
        the backend is notified.

    Raises:
        LeaseHeld, LeaseLost: another worker has the job.
        Stopped, Unavailable, BlobDenied, RecordNewer, RecordDamaged: as the calls made.
    """
    lease = store.lease(record.job.task_id)
    if record.job.is_terminal:
        log.info("task %s: nothing to do, the job is %s", record.job.task_id, record.job.state)
        lease.delete()  # a crashed worker may have left it
        return None
    job_stop = StopSignal(stop)
    with lease.hold(job_stop, is_finished=lambda: record.job.is_terminal):
        record.load()
        store.check_weights(record.job)
        if record.job.state in UNDECIDED:
            settlement = decide(HeldJob(record, lease, job_stop, stop))
            if settlement is not None:
                return settlement
        if not record.job.is_terminal:
            settlement = notify_outcome(record, lease, stop)
            if not record.job.is_terminal:
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
