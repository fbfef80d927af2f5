"""Events of a job, for logs, metrics and displays."""

from __future__ import annotations

from dataclasses import dataclass

from domain.failure import Failure
from domain.parameters import TrainingParameters
from domain.progress import Progress
from domain.results import Artifact, CheckpointRef, Preview, PreviewScores, TrainingMetric


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event of one job."""

    task_id: str
    style_id: int


@dataclass(frozen=True, kw_only=True)
class JobStarted(Event):
    """A worker started the job, or resumed it."""

    attempt: int
    resumed_from: CheckpointRef | None


@dataclass(frozen=True, kw_only=True)
class SlotAwaited(Event):
    """The images are checked; the job waits for a slot on the device."""


@dataclass(frozen=True, kw_only=True)
class TrainingBegan(Event):
    """The images are checked; the trainer is about to prepare the run."""

    parameters: TrainingParameters
    image_count: int


@dataclass(frozen=True, kw_only=True)
class ProgressMade(Event):
    """A step is finished."""

    progress: Progress
    epoch_finished: bool


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint is stored; the job can be resumed from it after a crash."""

    checkpoint: CheckpointRef


@dataclass(frozen=True, kw_only=True)
class CheckpointDiscarded(Event):
    """The stored checkpoint cannot be used; training starts over."""


@dataclass(frozen=True, kw_only=True)
class PreviewsDrawn(Event):
    """Previews were drawn: at a checkpoint, or for the report, maybe after the job's end."""

    epoch: int
    """The epoch of the style."""
    previews: tuple[Preview, ...]
    with_lora: bool
    """True: with the style; False: by the base model alone."""


@dataclass(frozen=True, kw_only=True)
class PreviewsScored(Event):
    """The previews of a checkpoint were scored by the model itself."""

    epoch: int
    scores: PreviewScores


@dataclass(frozen=True, kw_only=True)
class SecondTryBegan(Event):
    """The training diverged without learning the style; it starts over."""

    learning_rate: float
    """The learning rate of the second try."""


@dataclass(frozen=True, kw_only=True)
class TrainingFinished(Event):
    """The last step is finished; the weights are about to be uploaded."""

    metric: TrainingMetric


@dataclass(frozen=True, kw_only=True)
class ArtifactStored(Event):
    """The weights are completely stored in the bucket."""

    artifact: Artifact


@dataclass(frozen=True, kw_only=True)
class FailureRecorded(Event):
    """The job will not produce a style; the backend is about to be notified."""

    failure: Failure


@dataclass(frozen=True, kw_only=True)
class NotificationBegan(Event):
    """The outcome webhook is about to be sent; ``call`` is the number of the try, from 1."""

    call: int


@dataclass(frozen=True, kw_only=True)
class JobCompleted(Event):
    """The backend was notified that the style is ready."""

    artifact: Artifact


@dataclass(frozen=True, kw_only=True)
class JobFailed(Event):
    """The backend was notified that the job failed or was cancelled."""

    failure: Failure


@dataclass(frozen=True, kw_only=True)
class PartTimed(Event):
    """A part of the job has ended. Times of parts with the same name add up."""

    part: str
    """``fetch`` (images), ``encode``, ``first step``, ``steps``, ``measurements`` (steps that end
    with a measurement of the loss), ``checkpoints`` or ``previews``."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class JobInterrupted(Event):
    """The job was interrupted; the next worker resumes it from its last checkpoint."""

    reason: str
    failures: int
