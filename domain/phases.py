"""Derive a job's state from its events, for observers."""

from __future__ import annotations

from domain.events import (
    AnnouncementBegun,
    ArtifactStored,
    Event,
    FailureRecorded,
    JobCompleted,
    JobFailed,
    JobInterrupted,
    JobStarted,
    SecondTryBegan,
    TrainingBegan,
    TrainingFinished,
)
from domain.failure import FailureCode
from domain.job import JobState

_AFTER: dict[type[Event], JobState] = {
    JobStarted: JobState.PREPARING,
    TrainingBegan: JobState.TRAINING,
    SecondTryBegan: JobState.PREPARING,
    TrainingFinished: JobState.UPLOADING,
    ArtifactStored: JobState.ANNOUNCING,
    FailureRecorded: JobState.ANNOUNCING,
    AnnouncementBegun: JobState.ANNOUNCING,
    JobCompleted: JobState.COMPLETED,
    JobFailed: JobState.FAILED,
    JobInterrupted: JobState.INTERRUPTED,
}

PHASES = (JobState.PREPARING, JobState.TRAINING, JobState.UPLOADING, JobState.ANNOUNCING)
"""The states in which a worker processes a job, in order."""


def state_after(event: Event) -> JobState | None:
    """The state of the job after the event; None if the event does not change it."""
    if isinstance(event, JobFailed) and event.failure.code is FailureCode.CANCELLED:
        return JobState.CANCELLED
    return _AFTER.get(type(event))
