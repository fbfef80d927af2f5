"""How a worker settles a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ack:
    """The message is dealt with."""


@dataclass(frozen=True)
class RetryLater:
    """Deliver the message again after ``delay`` seconds."""

    delay: float
    reason: str
    elsewhere: bool = False
    """Another delivery of the same task is being processed."""
    broken: bool = False
    """This worker's device has failed: the worker ends."""
    defect: bool = False
    """An error that nobody expected broke the job off."""


@dataclass(frozen=True)
class DeadLetter:
    """Put the message where an operator finds it."""

    reason: str
    details: Mapping[str, str] = field(default_factory=dict)
    """The reason for programs: field, value, remedy."""


@dataclass(frozen=True)
class Requeue:
    """This worker shuts down: give the message to another one at once."""


Settlement = Ack | RetryLater | DeadLetter | Requeue
