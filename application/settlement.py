"""What becomes of a message once its job has been dealt with."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True)
class HandBack:
    """This worker stops; another may go on at once."""


Settlement = Done | RetryLater | DeadLetter | HandBack
