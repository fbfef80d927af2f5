"""The ports: the interfaces that the use cases need, and the errors that they handle.

An adapter raises only the errors named here, and none of its library. Any other error is a
defect; the job is then retried a limited number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import Protocol

from application.stop_signal import StopSignal
from domain.failure import Failure
from domain.image import ImageSet, PreparedImage, TrainingImage
from domain.label import UNNAMED, Label
from domain.location import Location
from domain.parameters import TrainingParameters
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric
from domain.task import TrainingTask


class Unavailable(Exception):
    """The service cannot be reached or asks to wait; the same call may succeed later."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds that the service asks to wait, if it says so."""


# --- Queue -------------------------------------------------------------------------------


class QueueUnavailable(Unavailable):
    """The broker cannot be reached at the moment."""


class DeliveryLost(Exception):
    """The broker has taken the delivery back; it will deliver the message again."""


MAX_MESSAGE_BYTES = 256 * 1024
"""Of a task: twice one with 100 images under the longest keys. Queues deliver one byte more of
a longer message, which is enough to refuse it by."""


@dataclass(frozen=True)
class Delivery:
    """One message that this worker holds until it settles it."""

    id: str
    """Identifies this delivery to the queue that gave it."""
    body: bytes
    retries: int = 0
    """How often the message was put aside by ``retry_later``."""
    redelivered: bool = False


class Queue(Protocol):
    """A durable queue of task messages, delivered at least once.

    Every call may be made from any thread. A delivery is settled by exactly one of
    ``acknowledge``, ``retry_later``, ``dead_letter`` and ``requeue``; one that is never
    settled, because its worker died, is delivered again. Settling raises ``DeliveryLost``
    when the broker has already taken the delivery back.
    """

    def publish(self, body: bytes) -> None:
        """Put a message at the end of the queue, durably.

        Raises:
            QueueUnavailable: the message may or may not be there.
        """

    def receive(self, timeout: float) -> Delivery | None:
        """The next message, or None when none comes within ``timeout`` seconds.

        Raises:
            QueueUnavailable: call again after a pause.
        """

    def acknowledge(self, delivery: Delivery) -> None:
        """Remove the message: it is dealt with."""

    def retry_later(self, delivery: Delivery, delay: float, reason: str) -> None:
        """Deliver the message again after ``delay`` seconds, with ``retries`` one higher."""

    def dead_letter(
        self, delivery: Delivery, reason: str, details: Mapping[str, str] | None = None
    ) -> None:
        """Put the message where an operator finds it, with the reason.

        Args:
            details: what a program may want of the reason: field, value, remedy.
        """

    def requeue(self, delivery: Delivery) -> None:
        """Give the message back for another worker, at once."""


@dataclass(frozen=True)
class DeadMessage:
    """One dead letter, as an operator sees it."""

    body: bytes
    reason: str
    details: Mapping[str, str] = field(default_factory=dict)
    since: datetime | None = None
    """When it was put there."""


class DeadLetterAction(Enum):
    """What becomes of a dead letter."""

    KEEP = "keep"
    PUT_BACK = "put back"
    """Onto the queue."""
    DROP = "drop"


class DeadLetters(Protocol):
    """The messages that only a person can help. Every queue has them."""

    def process_dead_letters(
        self, decide: Callable[[DeadMessage], DeadLetterAction]
    ) -> list[DeadMessage]:
        """Show each dead letter, oldest first, and do with it as is decided.

        A letter put back starts afresh, without retries. It leaves the dead letters only when
        the queue has it, so a failure in between may leave it in both, never in neither.

        Returns:
            Every letter shown, whether kept or not.

        Raises:
            QueueUnavailable: some may have been put back or dropped.
        """


class QueueDepths(Protocol):
    """How many messages wait where; for gauges and for scaling."""

    def depths(self) -> Mapping[str, int]:
        """Messages by the name of their queue: those that nobody holds.

        Raises:
            QueueUnavailable: they cannot be counted now.
        """


# --- BlobStore ---------------------------------------------------------------------------


class BlobUnavailable(Unavailable):
    """The store cannot be reached, is overloaded, or is full."""


class BlobMissing(Exception):
    """There is no blob at that location."""


class BlobDenied(Exception):
    """The store, or our own list of allowed buckets, refuses the access."""


class BlobTooLarge(Exception):
    """The blob is larger than the caller allows; its body was not read."""


class PreconditionFailed(Exception):
    """The blob is not in the state that the condition names; nothing was written."""


@dataclass(frozen=True)
class Blob:
    """A blob's content and the tag that names exactly this content."""

    data: bytes
    etag: str


@dataclass(frozen=True)
class IfAbsent:
    """Write only where there is no blob yet."""


@dataclass(frozen=True)
class IfMatch:
    """Write only over the content that has this tag."""

    etag: str


Condition = IfAbsent | IfMatch


class BlobStore(Protocol):
    """Buckets of blobs. A write appears whole or not at all; a read sees one whole write.

    Of several writers with conditions on the same state exactly one succeeds. Every call may
    raise ``BlobUnavailable`` (then a write may or may not have happened) and ``BlobDenied``.
    """

    def get(self, at: Location, *, max_bytes: int | None = None) -> Blob:
        """Read a blob.

        Raises:
            BlobMissing: nothing lies there, or there is no such bucket.
            BlobTooLarge: it has more than ``max_bytes`` bytes.
        """

    def put(
        self,
        at: Location,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        condition: Condition | None = None,
    ) -> str:
        """Write a blob and return its tag.

        Raises:
            PreconditionFailed: the condition does not hold.
        """

    def delete(self, at: Location) -> None:
        """Remove a blob; nothing happens where none lies."""

    def list(self, bucket: str, prefix: str) -> list[Location]:
        """Every blob whose key starts with ``prefix``, in order of the keys."""


# --- Notifier ----------------------------------------------------------------------------


class NotifierUnavailable(Unavailable):
    """The backend cannot be reached or answers 408, 429 or 5xx."""


class NotifierRefused(Exception):
    """The backend answers that this call will never be accepted; the text has its reason."""


class Notifier(Protocol):
    """The platform's backend. It is not idempotent: each final call is seen by the artist.

    Every call is tried once, and raises ``NotifierUnavailable`` or ``NotifierRefused``. After an
    ``Unavailable`` it may or may not have arrived: ``has_arrived`` may know, and whether it is
    worth another try is for the caller to say.
    """

    def progress(self, style_id: int, progress: Progress) -> None:
        """Tell how far the job is."""

    def completed(
        self, task_id: str, style_id: int, artifact: Artifact, metric: TrainingMetric
    ) -> None:
        """Tell that the style is ready."""

    def failed(self, task_id: str, style_id: int, failure: Failure) -> None:
        """Tell that there will be no style."""

    def has_arrived(self, task_id: str, style_id: int, outcome: Artifact | Failure) -> bool | None:
        """Whether the final call with this outcome has arrived. Raises nothing.

        Returns:
            None: it cannot be told.
        """


# --- Trainer -----------------------------------------------------------------------------


class CheckpointRejected(Exception):
    """The checkpoint is damaged or belongs to another run; the text says in what."""


class TrainerBroken(Exception):
    """The device has failed: this process can train nothing more; another one may."""


@dataclass(frozen=True)
class InitialLora:
    """An existing LoRA that a run starts from."""

    data: bytes
    """A safetensors file."""
    rank: int
    alpha: float
    """Its layers add ``alpha / rank * up @ down``."""

    def dimensions(self, parameters: TrainingParameters) -> TrainingParameters:
        """The parameters, with this LoRA's rank and alpha where ``dim_from_weights`` says so."""
        if not parameters.dim_from_weights:
            return parameters
        return replace(parameters, rank=self.rank, alpha=self.alpha)


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """All that determines a style. Equal plans on equal hardware give equal weights."""

    style_id: int
    images: tuple[TrainingImage, ...]
    tags: tuple[str, ...]
    parameters: TrainingParameters
    created_at: datetime | None = None
    label: Label = UNNAMED
    initial: InitialLora | None = None


@dataclass(frozen=True)
class StepReport:
    """What one step did. Counts are of what is finished."""

    epoch: int
    step: int
    epoch_finished: bool


@dataclass(frozen=True)
class EpochRecord:
    """One point of the loss curve."""

    epoch: int
    loss: float
    learning_rate: float
    evaluation_loss: float | None = None
    """Mean over fixed noises and timesteps of images trained on; in measured epochs only."""
    validation_loss: float | None = None
    """The same of images held out, where there are any."""
    gradient_norm: float | None = None
    """Mean over the epoch's steps, before clipping; None where a trainer does not tell."""
    largest_gradient_norm: float | None = None
    stalled: bool = False
    """True when nothing moved, or nothing pulled, though the learning rate would have let it."""


@dataclass(frozen=True)
class Checkpoint:
    """All it takes to go on from a moment of a run, on this machine or another."""

    epoch: int
    step: int
    data: bytes
    """safetensors, the state that is not a tensor in its metadata as JSON."""


@dataclass(frozen=True)
class Preview:
    """One image drawn by the model."""

    prompt: str
    seed: int
    png: bytes


class TrainingSession(Protocol):
    """One run, driven step by step by the use case.

    ``advance`` raises ``TrainingFailed`` (GPU_OOM, LOSS_DIVERGED, ...). Every call may raise
    ``TrainerBroken``.
    """

    @property
    def total_steps(self) -> int:
        """Steps in the whole run."""

    @property
    def finished(self) -> bool:
        """True when no step is left."""

    @property
    def history(self) -> Sequence[EpochRecord]:
        """Every finished epoch of the whole run, those before a resume included."""

    @property
    def peak_memory(self) -> int:
        """Most bytes held at a time so far: on a GPU by the run, else by the whole process."""

    def advance(self) -> StepReport:
        """Run the next step.

        A run that has gone wrong may go back to an earlier step, and report that one.
        """

    def checkpoint(self) -> Checkpoint:
        """The run as it stands between two steps. Resuming from it is exact.

        Of a run that has gone wrong it is the last moment at which it was well.
        """

    def weights(self) -> bytes:
        """The adapters as they stand, as a ``.safetensors`` file for other programs."""

    def previews(self, *, adapted: bool) -> tuple[Preview, ...]:
        """Images from fixed prompts and seeds, with the adapters or without.

        Leaves the run as it is: the steps that follow are the same with or without it.
        """


@dataclass(frozen=True)
class BaseFacts:
    """The base model, as far as those who use its styles need to know it."""

    name: str
    is_sd15: bool
    """Whether styles of it load where those of Stable Diffusion 1.5 do."""


class Trainer(Protocol):
    """Trains styles on one device: one alone, or several of one kind together.

    A session is used by one thread; each of several has its own.
    """

    @property
    def base(self) -> BaseFacts:
        """What the styles are for."""

    @property
    def native_resolution(self) -> int:
        """Side in pixels that the base model was trained for: 512 for SD 1.5."""

    def batch_key(self, parameters: TrainingParameters) -> Hashable | None:
        """What runs must have in common to be open at the same time, as many as there are slots.

        None: such a run is open alone.
        """

    def open(
        self, plan: TrainingPlan, resume: bytes | None
    ) -> AbstractContextManager[TrainingSession]:
        """Set a run up, from nothing or from a checkpoint's data. Leaving frees all of it.

        Raises:
            CheckpointRejected: ``resume`` cannot be used for this plan.
            TrainingFailed: the run cannot be set up.
            TrainerBroken: on leaving, too.
        """


class ImageInspector(Protocol):
    """Tells whether a file is an image that can be trained on, and makes it ready for that.

    Any number of threads may share one.
    """

    def inspect(self, data: bytes, resolution: int, stop: StopSignal) -> PreparedImage:
        """Decode the image fully, describe it, and reduce it to the size it is trained at.

        Args:
            resolution: that it is trained at, as the side of a square in pixels.

        Raises:
            ImageRefused: with the reason, in words for the artist.
            Stopped: the work should end; within a second or two.
        """


# --- Cards -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """One card at one moment; None where the card or its driver does not tell."""

    index: int
    name: str
    memory_used: int | None = None
    """Bytes in use, by anybody."""
    memory_total: int | None = None
    """Bytes."""
    utilization: float | None = None
    """Share of the last moment in which a kernel ran, 0 to 1."""
    temperature: int | None = None
    """Degrees Celsius."""
    power: float | None = None
    """Watts."""


# --- Clock, reports, events --------------------------------------------------------------


class Clock(Protocol):
    """Time: the only source of it that the application has."""

    def now(self) -> datetime:
        """Wall-clock time, aware, in UTC. May jump."""

    def monotonic(self) -> float:
        """Seconds since some moment. Never goes back."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def every(self, seconds: float, action: Callable[[], None]) -> AbstractContextManager[None]:
        """While the context is open, call ``action`` every ``seconds``, beside our own work.

        Leaving waits until a call under way has ended; none comes after that. What ``action``
        raises is logged and does not stop the calls. It runs in a copy of the context in which
        it was asked for.
        """


@dataclass(frozen=True, kw_only=True)
class StyleReport:
    """What there is to show of a finished run."""

    task: TrainingTask
    base: BaseFacts
    parameters: TrainingParameters
    images: ImageSet
    history: Sequence[EpochRecord]
    before: tuple[Preview, ...]
    after: tuple[Preview, ...]
    underway: tuple[tuple[int, tuple[bytes, ...]], ...] = ()
    """Epochs at whose checkpoint previews were drawn, each with the PNGs of ``after``'s prompts
    and seeds in their order."""
    artifact: Artifact
    metric: TrainingMetric
    seconds: float
    """Duration of this attempt, from taking the job up to the stored weights."""
    attempt: int
    peak_memory: int
    """Bytes, as ``TrainingSession.peak_memory``."""


@dataclass(frozen=True)
class ReportFile:
    """One file of a report, to be stored under ``name``."""

    name: str
    content_type: str
    data: bytes


class Reporter(Protocol):
    """Makes a report that a person can open."""

    def render(self, report: StyleReport) -> Sequence[ReportFile]:
        """The report's files."""


class TaskParser(Protocol):
    """Reads a message's body."""

    def __call__(self, body: bytes) -> TrainingTask:
        """The task that the body describes.

        Raises:
            InvalidTask: it describes none.
        """
