"""Reasons for which a job can fail: a message for the artist and a code for the platform."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FailureCode(StrEnum):
    """The codes sent to the backend; the artist's page has texts for the first three."""

    LOW_QUALITY_DATA = "LOW_QUALITY_DATA"
    """Too few usable images."""
    TRAINING_FAILED = "TRAINING_FAILED"
    """Any failure without a code of its own."""
    GPU_OOM = "GPU_OOM"
    """The GPU ran out of memory, even after every fallback."""
    LOSS_DIVERGED = "LOSS_DIVERGED"
    """The loss became infinite or NaN and did not recover."""
    STYLE_NOT_LEARNED = "STYLE_NOT_LEARNED"
    """Every measured epoch had a higher loss than the base model without the style."""
    INVALID_TASK = "INVALID_TASK"
    """The message is not a valid task."""
    CANCELLED = "CANCELLED"
    """The job was cancelled on request."""


@dataclass(frozen=True)
class Failure:
    """The reason for which a job produced no style."""

    code: FailureCode
    message: str
    """Cause and remedy, for the artist, without technical terms."""
    retryable: bool = False
    """True when the same task may succeed on another attempt."""


class TrainingFailed(Exception):
    """The job cannot continue, for the reason ``failure``."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.code}: {failure.message}")
        self.failure = failure
