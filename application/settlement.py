"""What becomes of a message once its job has been dealt with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from application.journal import RecordDamaged, RecordNewer
from application.lease import LeaseHeld, LeaseLost
from application.ports import BlobDenied, Unavailable
from application.retry import backoff
from application.stop_signal import Stopped, StopReason, StopSignal
from application.worker_config import WorkerConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ack:
    """Nothing is left to do: acknowledge."""


@dataclass(frozen=True)
class RetryLater:
    """Somebody should look at the message again after ``delay`` seconds."""

    delay: float
    reason: str
    elsewhere: bool = False
    """Another worker has the job."""
    broken: bool = False
    """This worker can train nothing more, and ends."""


@dataclass(frozen=True)
class DeadLetter:
    """Only a person can help."""

    reason: str
    details: Mapping[str, str] = field(default_factory=dict)
    """What a program may want of the reason: field, value, remedy."""


@dataclass(frozen=True)
class Requeue:
    """This worker stops; another may go on at once."""


Settlement = Ack | RetryLater | DeadLetter | Requeue


def settlement_after(
    error: Exception, about: str, *, retries: int, config: WorkerConfig, stop: StopSignal
) -> Settlement:
    """What becomes of a message whose handling broke off.

    Args:
        about: whose message it is, for the log.
        retries: how often it has been put aside already.
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
            # A denied bucket of models is the same for every task, which it must not bury; what
            # looks like damage may be another's answer in the store's place.
            if retries >= config.max_retries:
                return DeadLetter(str(error))
            return RetryLater(backoff(retries), str(error))
    log.error("%s met a defect", about, exc_info=error)
    reason = f"{type(error).__name__}: {error}"
    if retries >= config.max_retries:
        return DeadLetter(f"after {retries} retries: {reason}")
    return RetryLater(backoff(retries), reason)
