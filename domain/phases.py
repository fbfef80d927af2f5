"""What an event says about its job's state, for those who follow jobs by their events."""

from __future__ import annotations

from domain.events import (
    AnnouncementBegun,
    ArtifactStored,
    Event,
    JobCompleted,
    JobFailed,
    JobGivenUp,
    JobInterrupted,
    JobStarted,
    TrainingBegan,
    TrainingFinished,
)
from domain.failure import FailureCode
from domain.job import JobState

_AFTER: dict[type[Event], JobState] = {
    JobStarted: JobState.PREPARING,
    TrainingBegan: JobState.TRAINING,
    TrainingFinished: JobState.UPLOADING,
    ArtifactStored: JobState.ANNOUNCING,
    JobGivenUp: JobState.ANNOUNCING,
    AnnouncementBegun: JobState.ANNOUNCING,
    JobCompleted: JobState.COMPLETED,
    JobFailed: JobState.FAILED,
    JobInterrupted: JobState.INTERRUPTED,
}

PHASES = (JobState.PREPARING, JobState.TRAINING, JobState.UPLOADING, JobState.ANNOUNCING)
"""The states in which a worker is at work on a job, in their order."""


def state_after(event: Event) -> JobState | None:
    """The state of the job once the event has happened; None when it changes none."""
    if isinstance(event, JobFailed) and event.failure.code is FailureCode.CANCELLED:
        return JobState.CANCELLED
    return _AFTER.get(type(event))
