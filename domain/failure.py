"""Why a job can fail, in words for the artist and in a code for the platform."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FailureCode(StrEnum):
    """The codes sent to the backend; the first three are the ones the artist's page knows."""

    LOW_QUALITY_DATA = "LOW_QUALITY_DATA"
    """Too few usable images."""
    TRAINING_FAILED = "TRAINING_FAILED"
    """Anything that has no code of its own."""
    GPU_OOM = "GPU_OOM"
    """The card's memory did not suffice, even after every fallback."""
    LOSS_DIVERGED = "LOSS_DIVERGED"
    """The loss stopped being a finite number and did not recover."""
    INVALID_TASK = "INVALID_TASK"
    """The message is not a task we can carry out."""
    CANCELLED = "CANCELLED"
    """Somebody asked for the job to be stopped."""


@dataclass(frozen=True)
class Failure:
    """One reason for which a job did not produce a style."""

    code: FailureCode
    message: str
    """For the artist: what happened and what to do, without our vocabulary."""
    retryable: bool = False
    """True when the same task may succeed on another attempt."""


class TrainingFailed(Exception):
    """Raised wherever a job turns out to be unable to go on; carries the reason."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.code}: {failure.message}")
        self.failure = failure
