"""How a worker settles a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ack:
    """Acknowledge the processed message."""


@dataclass(frozen=True)
class RetryLater:
    """Deliver the message again after ``delay`` seconds."""

    delay: float
    reason: str
    counts: bool = True
    """Whether it counts towards the retries after which some errors are final. Waiting for another
    worker does not; waiting for a dependency does until the delay has reached its maximum."""
    elsewhere: bool = False
    """Another delivery of the same task is being processed."""
    device_broken: bool = False
    """The device of this worker failed: the worker must end."""
    unexpected: bool = False
    """The job was interrupted by an unexpected error."""


@dataclass(frozen=True)
class DeadLetter:
    """Move the message to the dead letters for an operator."""

    reason: str
    details: Mapping[str, str] = field(default_factory=dict)
    """The reason in machine-readable form: field, value, remedy."""


@dataclass(frozen=True)
class Requeue:
    """Return the message to the queue immediately, because this worker shuts down."""


Settlement = Ack | RetryLater | DeadLetter | Requeue
