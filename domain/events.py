"""What happens to a job, as facts that logs, metrics and displays can listen to."""

from __future__ import annotations

from dataclasses import dataclass

from domain.failure import Failure
from domain.parameters import TrainingParameters
from domain.progress import Progress
from domain.results import Artifact, CheckpointRef, TrainingMetric


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to one job."""

    task_id: str
    style_id: int


@dataclass(frozen=True, kw_only=True)
class JobStarted(Event):
    """A worker took the job up, for the first time or again."""

    attempt: int
    resumed_from: CheckpointRef | None


@dataclass(frozen=True, kw_only=True)
class SlotAwaited(Event):
    """The images are checked; other styles have the device."""


@dataclass(frozen=True, kw_only=True)
class TrainingBegan(Event):
    """The images are checked and the first step is about to run."""

    parameters: TrainingParameters
    image_count: int


@dataclass(frozen=True, kw_only=True)
class ProgressMade(Event):
    """A step is done."""

    progress: Progress
    epoch_finished: bool


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """Work up to here survives the loss of the worker."""

    checkpoint: CheckpointRef


@dataclass(frozen=True, kw_only=True)
class CheckpointDiscarded(Event):
    """The stored checkpoint cannot be used; training starts over."""


@dataclass(frozen=True, kw_only=True)
class TrainingFinished(Event):
    """The last step is done; the weights are about to be uploaded."""

    metric: TrainingMetric


@dataclass(frozen=True, kw_only=True)
class ArtifactStored(Event):
    """The weights lie in the bucket, whole."""

    artifact: Artifact


@dataclass(frozen=True, kw_only=True)
class JobGivenUp(Event):
    """The job will not produce a style; the backend is about to be told."""

    failure: Failure


@dataclass(frozen=True, kw_only=True)
class AnnouncementBegun(Event):
    """The final call to the backend is about to be made; the count includes this one."""

    call: int


@dataclass(frozen=True, kw_only=True)
class JobCompleted(Event):
    """The backend knows that the style is ready."""

    artifact: Artifact


@dataclass(frozen=True, kw_only=True)
class JobFailed(Event):
    """The backend knows that there will be no style."""

    failure: Failure


@dataclass(frozen=True, kw_only=True)
class JobInterrupted(Event):
    """The job was put down unfinished, to be taken up again from its last checkpoint."""

    reason: str
    failures: int
