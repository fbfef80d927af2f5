"""TrainingJob: the states of one task, the transitions allowed, and the events they give.

    queued -> preparing -> training -> uploading -> announcing -> completed
                 any of the first four, or interrupted -> announcing -> failed | cancelled
                 preparing | training | uploading -> interrupted -> preparing
                 completed -> interrupted, where the style is gone and is wanted again

A job is a value. Every transition returns the job as it is afterwards and one event. What
a worker needs to go on from another's crash is in the job, so its record is the journal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias, TypedDict

from domain.events import (
    AnnouncementBegun,
    ArtifactStored,
    CheckpointDiscarded,
    CheckpointSaved,
    Event,
    JobCompleted,
    JobFailed,
    JobGivenUp,
    JobInterrupted,
    JobStarted,
    ProgressMade,
    SlotAwaited,
    TrainingBegan,
    TrainingFinished,
)
from domain.failure import Failure, FailureCode
from domain.parameters import TrainingParameters
from domain.progress import Progress
from domain.results import Artifact, CheckpointRef, TrainingMetric


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    """Known, not yet taken up."""
    PREPARING = "preparing"
    """Images are being fetched and checked."""
    TRAINING = "training"
    """Steps are being run."""
    UPLOADING = "uploading"
    """Training is done; the weights are on their way to the bucket."""
    ANNOUNCING = "announcing"
    """The outcome is settled and stored; the backend is being told."""
    COMPLETED = "completed"
    """The backend knows the style is ready. Final, for as long as the style is there."""
    FAILED = "failed"
    """The backend knows the job failed. Final."""
    CANCELLED = "cancelled"
    """The backend knows the job was cancelled. Final."""
    INTERRUPTED = "interrupted"
    """Put down unfinished; the next worker goes on from the last checkpoint."""


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})
ACTIVE = frozenset({JobState.PREPARING, JobState.TRAINING, JobState.UPLOADING})
UNDECIDED = ACTIVE | {JobState.QUEUED, JobState.INTERRUPTED}


class InvalidTransition(Exception):
    """The job's state does not allow this."""

    def __init__(self, state: JobState, action: str) -> None:
        super().__init__(f"cannot {action} a job that is {state}")


Change: TypeAlias = "tuple[TrainingJob, Event]"
"""A job as it is after a transition, and what happened."""


class _Ids(TypedDict):
    task_id: str
    style_id: int


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One task on its way to a style."""

    task_id: str
    style_id: int
    state: JobState = JobState.QUEUED
    attempt: int = 0
    """How often a worker has taken the job up."""
    failures: int = 0
    """Crashes and retryable failures since the last checkpoint: what bounds a poisonous job."""
    waits: bool = False
    """Prepared, and waiting for a slot: if the worker dies now, this job has not killed it."""
    parameters: TrainingParameters | None = None
    """Settled when training first begins, and kept over every resume."""
    progress: Progress | None = None
    """The furthest point reached; going back to a checkpoint does not lower it."""
    checkpoint: CheckpointRef | None = None
    metric: TrainingMetric | None = None
    artifact: Artifact | None = None
    failure: Failure | None = None
    announcements: int = 0
    """Final calls to the backend that were begun."""

    def __post_init__(self) -> None:
        if self.state is JobState.COMPLETED and self.artifact is None:
            raise ValueError("a completed job has an artifact")
        if self.state in {JobState.FAILED, JobState.CANCELLED} and self.failure is None:
            raise ValueError(f"a {self.state} job has a failure")
        if self.state is JobState.ANNOUNCING and (self.artifact is None) == (self.failure is None):
            raise ValueError("an announcing job has either an artifact or a failure")

    @property
    def is_terminal(self) -> bool:
        """True when nothing more will happen to the job."""
        return self.state in TERMINAL

    def start(self) -> Change:
        """A worker takes the job up."""
        self._allow("start", JobState.QUEUED, JobState.INTERRUPTED)
        job = replace(self, state=JobState.PREPARING, attempt=self.attempt + 1, metric=None)
        return job, JobStarted(**self._ids(), attempt=job.attempt, resumed_from=self.checkpoint)

    def await_slot(self) -> Change:
        """The images are good; other jobs have the device."""
        self._allow("let wait", JobState.PREPARING)
        return replace(self, waits=True), SlotAwaited(**self._ids())

    def begin_training(self, parameters: TrainingParameters, image_count: int) -> Change:
        """The images are good; the parameters are settled."""
        self._allow("begin training", JobState.PREPARING)
        if self.parameters is not None and parameters != self.parameters:
            raise InvalidTransition(self.state, "change the parameters of")
        job = replace(self, state=JobState.TRAINING, waits=False, parameters=parameters)
        return job, TrainingBegan(**self._ids(), parameters=parameters, image_count=image_count)

    def advance(self, progress: Progress, *, epoch_finished: bool) -> Change:
        """A step is done. A position behind the furthest one reached leaves that one in place."""
        self._allow("advance", JobState.TRAINING)
        furthest = self.progress
        if furthest is None or progress.current_step >= furthest.current_step:
            furthest = progress
        else:
            furthest = replace(furthest, redone=furthest.current_step - progress.current_step)
        job = replace(self, progress=furthest)
        event = ProgressMade(**self._ids(), progress=progress, epoch_finished=epoch_finished)
        return job, event

    def save_checkpoint(self, checkpoint: CheckpointRef) -> Change:
        """A checkpoint is stored; crashes before it no longer count."""
        self._allow("save a checkpoint of", JobState.TRAINING)
        job = replace(self, checkpoint=checkpoint, failures=0)
        return job, CheckpointSaved(**self._ids(), checkpoint=checkpoint)

    def discard_checkpoint(self) -> Change:
        """The checkpoint cannot be used; training starts over."""
        self._allow("discard the checkpoint of", JobState.TRAINING)
        return replace(self, checkpoint=None), CheckpointDiscarded(**self._ids())

    def finish_training(self, metric: TrainingMetric) -> Change:
        """The last step is done."""
        self._allow("finish training", JobState.TRAINING)
        job = replace(self, state=JobState.UPLOADING, metric=metric)
        return job, TrainingFinished(**self._ids(), metric=metric)

    def store(self, artifact: Artifact) -> Change:
        """The weights lie in the bucket; all that is left is to say so."""
        self._allow("store", JobState.UPLOADING)
        job = replace(self, state=JobState.ANNOUNCING, artifact=artifact)
        return job, ArtifactStored(**self._ids(), artifact=artifact)

    def give_up(self, failure: Failure) -> Change:
        """The job cannot produce a style; all that is left is to say so."""
        self._allow("give up", *UNDECIDED)
        job = replace(self, state=JobState.ANNOUNCING, artifact=None, failure=failure)
        return job, JobGivenUp(**self._ids(), failure=failure)

    def begin_announcement(self) -> Change:
        """The final call is about to be made: recorded first, so that a crash is noticed."""
        self._allow("announce", JobState.ANNOUNCING)
        job = replace(self, announcements=self.announcements + 1)
        return job, AnnouncementBegun(**self._ids(), call=job.announcements)

    def conclude(self) -> Change:
        """The backend has taken the final call."""
        self._allow("conclude", JobState.ANNOUNCING)
        if not self.announcements:
            raise InvalidTransition(self.state, "conclude before announcing")
        if self.failure is not None:
            cancelled = self.failure.code is FailureCode.CANCELLED
            state = JobState.CANCELLED if cancelled else JobState.FAILED
            return replace(self, state=state), JobFailed(**self._ids(), failure=self.failure)
        assert self.artifact is not None  # __post_init__ holds it
        job = replace(self, state=JobState.COMPLETED)
        return job, JobCompleted(**self._ids(), artifact=self.artifact)

    def interrupt(self, reason: str, *, is_failure: bool) -> Change:
        """The job is put down. ``is_failure`` says that this was not an orderly hand-over."""
        self._allow("interrupt", *ACTIVE)
        failures = self.failures + is_failure
        job = replace(self, state=JobState.INTERRUPTED, waits=False, failures=failures)
        return job, JobInterrupted(**self._ids(), reason=reason, failures=failures)

    def reopen(self, reason: str) -> Change:
        """The style is wanted again: it is made anew from the last checkpoint, and announced."""
        self._allow("reopen", JobState.COMPLETED)
        job = replace(
            self, state=JobState.INTERRUPTED, metric=None, artifact=None, announcements=0
        )
        return job, JobInterrupted(**self._ids(), reason=reason, failures=job.failures)

    def _allow(self, action: str, *states: JobState) -> None:
        if self.state not in states:
            raise InvalidTransition(self.state, action)

    def _ids(self) -> _Ids:
        return {"task_id": self.task_id, "style_id": self.style_id}
