"""How to settle a message whose processing failed."""

from __future__ import annotations

import logging

from application.fenced_blob import RecordDamaged
from application.journal import RecordNewer
from application.lease import LeaseHeld, LeaseLost
from application.ports import BlobDenied, Unavailable
from application.retry import backoff
from application.settlement import DeadLetter, Requeue, RetryLater, Settlement
from application.stop_signal import Stopped, StopReason, StopSignal
from application.worker_config import WorkerConfig

log = logging.getLogger(__name__)


def settlement_after(
    error: Exception, about: str, *, retries: int, config: WorkerConfig, stop: StopSignal
) -> Settlement:
    """How to settle a message whose processing raised ``error``.

    Args:
        about: names the message in the log.
        retries: number of earlier retries of the message.
    """
    match error:
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
