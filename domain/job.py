"""TrainingJob: the states of one task, the allowed transitions, and their events.

    queued -> preparing -> training -> uploading -> notifying -> completed
                 any of the first four, or interrupted -> notifying -> failed | cancelled
                 preparing | training | uploading -> interrupted -> preparing
                 training -> preparing, once, for a second try
                 completed -> interrupted, if the style or its report is missing (local runs only)

A job is an immutable value. Every transition returns the new job and one event. The job holds
everything that a worker needs to resume it after a crash, so the journal stores the job.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias, TypedDict

from domain.events import (
    ArtifactStored,
    CheckpointDiscarded,
    CheckpointSaved,
    Event,
    FailureRecorded,
    JobCompleted,
    JobFailed,
    JobInterrupted,
    JobStarted,
    NotificationBegan,
    ProgressMade,
    SecondTryBegan,
    SlotAwaited,
    TrainingBegan,
    TrainingFinished,
)
from domain.failure import Failure, FailureCode
from domain.parameters import TrainingParameters
from domain.progress import Progress
from domain.results import Artifact, CheckpointRef, TrainingMetric


class JobState(StrEnum):
    """The states of a job."""

    QUEUED = "queued"
    """Not yet started by a worker."""
    PREPARING = "preparing"
    """Images are being fetched and checked."""
    TRAINING = "training"
    """The trainer runs steps."""
    UPLOADING = "uploading"
    """Training is finished; the weights are being uploaded."""
    NOTIFYING = "announcing"  # stored in records and read by dashboards under its old name
    """The outcome is decided and stored; the backend is being notified."""
    COMPLETED = "completed"
    """The backend was notified that the style is ready. Final while the style exists."""
    FAILED = "failed"
    """The backend was notified that the job failed. Final."""
    CANCELLED = "cancelled"
    """The backend was notified that the job was cancelled. Final."""
    INTERRUPTED = "interrupted"
    """Stopped before the end; the next worker resumes from the last checkpoint."""


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})
ACTIVE = frozenset({JobState.PREPARING, JobState.TRAINING, JobState.UPLOADING})
UNDECIDED = ACTIVE | {JobState.QUEUED, JobState.INTERRUPTED}


class InvalidTransition(Exception):
    """The job's state does not allow this transition."""

    def __init__(self, state: JobState, action: str) -> None:
        super().__init__(f"cannot {action} a job that is {state}")


Change: TypeAlias = "tuple[TrainingJob, Event]"
"""The job after a transition, and the transition's event."""


class _Ids(TypedDict):
    task_id: str
    style_id: int


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """The state and results of one task."""

    task_id: str
    style_id: int
    state: JobState = JobState.QUEUED
    attempt: int = 0
    """Number of times that a worker has started or resumed the job."""
    failures: int = 0
    """Crashes and retryable failures since the last checkpoint; limits retries of a job that
    crashes its worker."""
    waits: bool = False
    """Whether the job waits for a slot; a crash of the worker then does not count as the job's
    failure."""
    parameters: TrainingParameters | None = None
    """Set when training first begins; resuming does not change them, a second try does."""
    second_try: bool = False
    """Whether training started over with a lower learning rate. There is no third try."""
    progress: Progress | None = None
    """The furthest point reached; returning to a checkpoint does not lower it."""
    checkpoint: CheckpointRef | None = None
    metric: TrainingMetric | None = None
    artifact: Artifact | None = None
    failure: Failure | None = None
    notifications: int = 0
    """Tries to send the outcome webhook, each counted before it is made."""

    def __post_init__(self) -> None:
        if self.state is JobState.COMPLETED and self.artifact is None:
            raise ValueError("a completed job has an artifact")
        if self.state in {JobState.FAILED, JobState.CANCELLED} and self.failure is None:
            raise ValueError(f"a {self.state} job has a failure")
        if self.state is JobState.NOTIFYING and (self.artifact is None) == (self.failure is None):
            raise ValueError("a notifying job has either an artifact or a failure")

    @property
    def ids(self) -> _Ids:
        """The fields that every event of the job has."""
        return {"task_id": self.task_id, "style_id": self.style_id}

    @property
    def is_terminal(self) -> bool:
        """True if the job is completed, failed or cancelled."""
        return self.state in TERMINAL

    def start(self) -> Change:
        """Start or resume the job."""
        self._allow("start", JobState.QUEUED, JobState.INTERRUPTED)
        job = replace(self, state=JobState.PREPARING, attempt=self.attempt + 1, metric=None)
        return job, JobStarted(**self.ids, attempt=job.attempt, resumed_from=self.checkpoint)

    def await_slot(self) -> Change:
        """Wait for a slot, after checking the images."""
        self._allow("wait for a slot with", JobState.PREPARING)
        return replace(self, waits=True), SlotAwaited(**self.ids)

    def begin_training(self, parameters: TrainingParameters, image_count: int) -> Change:
        """Begin training with the final parameters."""
        self._allow("begin training", JobState.PREPARING)
        if self.parameters is not None and parameters != self.parameters:
            raise InvalidTransition(self.state, "change the parameters of")
        job = replace(self, state=JobState.TRAINING, waits=False, parameters=parameters)
        return job, TrainingBegan(**self.ids, parameters=parameters, image_count=image_count)

    def advance(self, progress: Progress, *, epoch_finished: bool) -> Change:
        """Record a finished step. ``progress`` stays at the furthest position reached."""
        self._allow("advance", JobState.TRAINING)
        furthest = self.progress
        if furthest is None or progress.current_step >= furthest.current_step:
            furthest = progress
        else:
            furthest = replace(furthest, redone=furthest.current_step - progress.current_step)
        job = replace(self, progress=furthest)
        event = ProgressMade(**self.ids, progress=progress, epoch_finished=epoch_finished)
        return job, event

    def save_checkpoint(self, checkpoint: CheckpointRef) -> Change:
        """Record a stored checkpoint, and reset the number of failures."""
        self._allow("save a checkpoint of", JobState.TRAINING)
        job = replace(self, checkpoint=checkpoint, failures=0)
        return job, CheckpointSaved(**self.ids, checkpoint=checkpoint)

    def discard_checkpoint(self) -> Change:
        """Drop an unusable checkpoint, so that training starts over."""
        self._allow("discard the checkpoint of", JobState.TRAINING)
        return replace(self, checkpoint=None), CheckpointDiscarded(**self.ids)

    def try_again(self, parameters: TrainingParameters) -> Change:
        """Start the training over with other parameters, once."""
        self._allow("train again", JobState.TRAINING)
        if self.second_try:
            raise InvalidTransition(self.state, "train a third time")
        job = replace(
            self,
            state=JobState.PREPARING,
            parameters=parameters,
            second_try=True,
            progress=None,
            checkpoint=None,
        )
        return job, SecondTryBegan(**self.ids, learning_rate=parameters.learning_rate)

    def finish_training(self, metric: TrainingMetric) -> Change:
        """Record the end of the last step."""
        self._allow("finish training", JobState.TRAINING)
        job = replace(self, state=JobState.UPLOADING, metric=metric)
        return job, TrainingFinished(**self.ids, metric=metric)

    def store(self, artifact: Artifact) -> Change:
        """Record the stored weights; next, notify the backend."""
        self._allow("store", JobState.UPLOADING)
        job = replace(self, state=JobState.NOTIFYING, artifact=artifact)
        return job, ArtifactStored(**self.ids, artifact=artifact)

    def fail(self, failure: Failure) -> Change:
        """Record the job's failure; next, notify the backend."""
        self._allow("fail", *UNDECIDED)
        job = replace(self, state=JobState.NOTIFYING, artifact=None, failure=failure)
        return job, FailureRecorded(**self.ids, failure=failure)

    def begin_notification(self) -> Change:
        """Count a try to send the outcome webhook before it is made, for the next worker."""
        self._allow("notify the backend of", JobState.NOTIFYING)
        job = replace(self, notifications=self.notifications + 1)
        return job, NotificationBegan(**self.ids, call=job.notifications)

    def finish(self) -> Change:
        """Record that the backend has accepted the outcome webhook."""
        self._allow("finish", JobState.NOTIFYING)
        if not self.notifications:
            raise InvalidTransition(self.state, "finish, without a call to the backend,")
        if self.failure is not None:
            cancelled = self.failure.code is FailureCode.CANCELLED
            state = JobState.CANCELLED if cancelled else JobState.FAILED
            return replace(self, state=state), JobFailed(**self.ids, failure=self.failure)
        assert self.artifact is not None  # checked by __post_init__
        job = replace(self, state=JobState.COMPLETED)
        return job, JobCompleted(**self.ids, artifact=self.artifact)

    def interrupt(self, reason: str, *, is_failure: bool) -> Change:
        """Interrupt the job. ``is_failure`` counts it as a failure, not as an orderly stop."""
        self._allow("interrupt", *ACTIVE)
        failures = self.failures + is_failure
        job = replace(self, state=JobState.INTERRUPTED, waits=False, failures=failures)
        return job, JobInterrupted(**self.ids, reason=reason, failures=failures)

    def reopen(self, reason: str) -> Change:
        """Resume a completed job whose style or report is missing, from the last checkpoint."""
        self._allow("reopen", JobState.COMPLETED)
        job = replace(
            self, state=JobState.INTERRUPTED, metric=None, artifact=None, notifications=0
        )
        return job, JobInterrupted(**self.ids, reason=reason, failures=job.failures)

    def _allow(self, action: str, *states: JobState) -> None:
        if self.state not in states:
            raise InvalidTransition(self.state, action)


_AFTER: dict[type[Event], JobState] = {
    JobStarted: JobState.PREPARING,
    TrainingBegan: JobState.TRAINING,
    SecondTryBegan: JobState.PREPARING,
    TrainingFinished: JobState.UPLOADING,
    ArtifactStored: JobState.NOTIFYING,
    FailureRecorded: JobState.NOTIFYING,
    NotificationBegan: JobState.NOTIFYING,
    JobCompleted: JobState.COMPLETED,
    JobFailed: JobState.FAILED,
    JobInterrupted: JobState.INTERRUPTED,
}

PHASES = (JobState.PREPARING, JobState.TRAINING, JobState.UPLOADING, JobState.NOTIFYING)
"""The states in which a worker processes a job, in order."""


def state_after(event: Event) -> JobState | None:
    """The state of the job after the event; None if the event does not change it."""
    if isinstance(event, JobFailed) and event.failure.code is FailureCode.CANCELLED:
        return JobState.CANCELLED
    return _AFTER.get(type(event))
