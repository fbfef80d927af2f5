"""What becomes of a message once its job has been dealt with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Done:
    """Nothing is left to do: acknowledge."""


@dataclass(frozen=True)
class RetryLater:
    """Somebody should look at the message again after ``delay`` seconds."""

    delay: float
    reason: str


@dataclass(frozen=True)
class DeadLetter:
    """Only a person can help."""

    reason: str
    details: Mapping[str, str] = field(default_factory=dict)
    """What a program may want of the reason: field, value, remedy."""


@dataclass(frozen=True)
class HandBack:
    """This worker stops; another may go on at once."""


Settlement = Done | RetryLater | DeadLetter | HandBack
