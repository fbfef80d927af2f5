"""The ports: the interfaces that the use cases need, and the errors that they handle.

Adapters translate their library's errors into the errors of this module. Any other error counts
as a bug: the job is retried a limited number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from application.stop_signal import StopSignal
from domain.failure import Failure
from domain.image import PreparedImage
from domain.location import Bucket, Location
from domain.loss_curve import EpochRecord
from domain.parameters import TrainingParameters
from domain.progress import Progress, StepReport
from domain.report import BaseFacts, StyleReport
from domain.results import Artifact, Checkpoint, Preview, PreviewScores, TrainingMetric
from domain.training_plan import TrainingPlan


class Unavailable(Exception):
    """A service is unreachable or rate-limits us; the same call may succeed later."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds to wait before the next call, if the service sent a ``Retry-After``."""


# --- Queue -------------------------------------------------------------------------------


class QueueUnavailable(Unavailable):
    """The broker is temporarily unreachable."""


class DeliveryLost(Exception):
    """The delivery can no longer be settled; the queue delivers the message again."""


MAX_MESSAGE_BYTES = 256 * 1024
"""Largest accepted task: twice the size of one with 100 images under the longest keys. Queues
cut a longer message to one byte more than this, so that the parser can reject it."""


@dataclass(frozen=True)
class Delivery:
    """One message received by this worker and not yet settled."""

    id: str
    """The delivery's identifier within its queue."""
    body: bytes
    retries: int = 0
    """Number of earlier ``retry_later`` calls for this message that count."""
    redelivered: bool = False


class Queue(Protocol):
    """A durable queue of task messages, delivered at least once. Thread-safe.

    Settle each delivery by exactly one of ``acknowledge``, ``retry_later``, ``dead_letter`` and
    ``requeue``. The queue redelivers the unsettled messages of a dead worker. Settling raises
    ``DeliveryLost`` if the queue has already requeued the message.
    """

    def publish(self, body: bytes) -> None:
        """Append a persistent message to the queue.

        Raises:
            QueueUnavailable: the message may or may not have been stored.
        """

    def receive(self, timeout: float) -> Delivery | None:
        """Return the next message, or None if none arrives within ``timeout`` seconds.

        Messages stay available to other workers until a call returns them.

        Raises:
            QueueUnavailable: call again after a pause.
        """

    def acknowledge(self, delivery: Delivery) -> None:
        """Remove the processed message."""

    def retry_later(
        self, delivery: Delivery, delay: float, reason: str, *, counts: bool = True
    ) -> None:
        """Deliver the message again after ``delay`` seconds.

        Args:
            counts: whether ``retries`` is one higher then.
        """

    def dead_letter(
        self, delivery: Delivery, reason: str, details: Mapping[str, str] | None = None
    ) -> None:
        """Move the message to the dead letters, with the reason.

        Args:
            details: the reason in machine-readable form: field, value, remedy.
        """

    def requeue(self, delivery: Delivery) -> None:
        """Return the message to the queue immediately, for another worker."""


# --- BlobStore ---------------------------------------------------------------------------


class BlobUnavailable(Unavailable):
    """The store cannot be reached, is overloaded, or is full."""


class BlobMissing(Exception):
    """There is no blob at that location."""


class BlobDenied(Exception):
    """The store, or our own list of allowed buckets, denies access."""


class BlobTooLarge(Exception):
    """The blob exceeds the caller's limit; its body was not read."""


class PreconditionFailed(Exception):
    """The condition of a write does not hold; nothing was written."""


@dataclass(frozen=True)
class Blob:
    """A blob's content and its entity tag (ETag)."""

    data: bytes
    etag: str


@dataclass(frozen=True)
class IfAbsent:
    """Write only if no blob exists at the location."""


@dataclass(frozen=True)
class IfMatch:
    """Write only if the stored blob has this ETag."""

    etag: str


Condition = IfAbsent | IfMatch


class BlobStore(Protocol):
    """Buckets of blobs. Writes are atomic: a read returns the content of one complete write.

    If several writers condition their writes on the same state, exactly one succeeds. Every call
    may raise ``BlobDenied`` and ``BlobUnavailable``; after the latter, a write may or may not
    have been stored.
    """

    def get(self, at: Location, *, max_bytes: int | None = None) -> Blob:
        """Read a blob.

        Raises:
            BlobMissing: the blob or the bucket does not exist.
            BlobTooLarge: the blob has more than ``max_bytes`` bytes.
        """

    def put(
        self,
        at: Location,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        condition: Condition | None = None,
    ) -> str:
        """Write a blob and return its ETag.

        Raises:
            PreconditionFailed: the condition does not hold.
        """

    def delete(self, at: Location) -> None:
        """Delete a blob; no-op if it does not exist."""

    def list(self, bucket: Bucket, prefix: str) -> list[Location]:
        """List the blobs whose keys start with ``prefix``, sorted by key."""


# --- Notifier ----------------------------------------------------------------------------


class NotifierUnavailable(Unavailable):
    """The backend is unreachable or returned 408, 429 or 5xx."""


class NotifierRejected(Exception):
    """The backend rejected the call permanently; the text has its reason."""


class StyleGone(NotifierRejected):
    """The backend returned 404: the style does not exist or was deleted."""


class Notifier(Protocol):
    """Webhooks to the platform's backend. They are not idempotent: the artist is notified of
    each outcome webhook (``completed`` or ``failed``).

    Each method sends one request and raises ``NotifierUnavailable`` or ``NotifierRejected``. After
    ``NotifierUnavailable`` the call may or may not have arrived: the caller checks
    ``has_arrived`` and decides whether to retry.
    """

    def progress(self, style_id: int, progress: Progress) -> None:
        """Report the job's progress."""

    def completed(
        self, task_id: str, style_id: int, artifact: Artifact, metric: TrainingMetric
    ) -> None:
        """Report that the style is ready."""

    def failed(self, task_id: str, style_id: int, failure: Failure) -> None:
        """Report that the job failed or was cancelled."""

    def has_arrived(self, task_id: str, style_id: int, outcome: Artifact | Failure) -> bool | None:
        """Whether the webhook with this outcome has arrived; None if unknown. Never raises."""


# --- Trainer -----------------------------------------------------------------------------


class CheckpointRejected(Exception):
    """The checkpoint is damaged or belongs to another run; the text has the details."""


class TrainerBroken(Exception):
    """The device failed for good in this process; a new process may be able to use it."""


class TrainingSession(Protocol):
    """One training run; the use case calls ``advance`` for each step.

    ``advance`` raises ``TrainingFailed`` (GPU_OOM, LOSS_DIVERGED, ...). Every call may raise
    ``TrainerBroken``.
    """

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""

    @property
    def finished(self) -> bool:
        """True after the last step."""

    @property
    def history(self) -> Sequence[EpochRecord]:
        """Every finished epoch of the run, including those before a resume."""

    @property
    def baseline(self) -> EpochRecord | None:
        """Epoch 0: the base model's losses without the style, over the noises of every later
        evaluation. None if the run has no evaluations."""

    @property
    def peak_memory(self) -> int:
        """Peak memory so far in bytes: of the run on a GPU, of the whole process on a CPU."""

    def advance(self) -> StepReport:
        """Run the next step.

        A run that diverges may roll back; the report then has the earlier step.
        """

    def checkpoint(self) -> Checkpoint:
        """Return the current state; a run resumed from it continues exactly.

        For a diverged run, return the last good state instead.
        """

    def weights(self) -> bytes:
        """The current LoRA weights as a ``.safetensors`` file for other programs."""

    def restore(self, checkpoint: bytes) -> None:
        """After the last step, replace the weights by those of an earlier checkpoint of this run:
        ``weights`` and ``previews`` use them from here on. The history stays.

        Raises:
            CheckpointRejected: the checkpoint is damaged or belongs to another run.
        """

    def previews(
        self, *, with_lora: bool, check: Callable[[], None] = lambda: None
    ) -> tuple[Preview, ...]:
        """Generate images from fixed prompts and seeds, with the LoRA or without.

        Does not change the state of the run or of its random generators.

        Args:
            check: called after each denoising step; an exception from it ends the drawing.
        """

    def score_previews(
        self, previews: tuple[Preview, ...], check: Callable[[], None] = lambda: None
    ) -> PreviewScores | None:
        """Score a round of previews of this run, drawn with the LoRA. Does not change the run.

        The first call may draw the base model's previews; ``check`` is as for ``previews``.
        None if the trainer does not score previews.
        """


class Trainer(Protocol):
    """Trains LoRAs on a device: one run alone, or several with equal ``batch_key`` together.

    Use each session from one thread only; concurrent sessions need a thread each.
    """

    @property
    def base(self) -> BaseFacts:
        """The base model that the LoRAs are trained on."""

    @property
    def native_resolution(self) -> int:
        """The base model's training resolution: side in pixels, 512 for SD 1.5."""

    def batch_key(self, parameters: TrainingParameters) -> Hashable | None:
        """Runs with equal keys can be open at the same time, one per slot.

        None: the run must be open alone.
        """

    def peft_files(self, weights: bytes) -> Mapping[str, bytes]:
        """Convert the result of ``TrainingSession.weights`` to the files of a folder that PEFT
        loads into the U-Net: the weights, then the configuration, without which PEFT loads
        nothing.
        """

    def open(
        self, plan: TrainingPlan, resume: bytes | None
    ) -> AbstractContextManager[TrainingSession]:
        """Start a new run, or resume one from a checkpoint's data. Leaving the context frees all
        of its memory.

        Raises:
            CheckpointRejected: ``resume`` does not fit this plan.
            TrainingFailed: the run cannot be set up.
            TrainerBroken: also when the context is left.
        """


class ImageInspector(Protocol):
    """Checks image files and prepares them for training. Thread-safe."""

    def inspect(self, data: bytes, resolution: int, stop: StopSignal) -> PreparedImage:
        """Decode the whole image, collect its facts, and scale and crop it to its training size.

        Args:
            resolution: training resolution, as the side of a square in pixels.

        Raises:
            ImageRejected: the image is unusable; the text is the reason, for the artist.
            Stopped: ``stop`` was set; raised within a second or two.
        """


class Captioner(Protocol):
    """Describes images in words. Thread-safe."""

    def describe(self, images: Sequence[bytes], stop: StopSignal) -> list[str]:
        """Return one description for each image, possibly empty.

        Args:
            images: files that decode to upright RGB images.

        Raises:
            Stopped: ``stop`` was set; raised after the current batch.
            TrainerBroken: the device failed and can no longer be used.
        """


# --- Clock, reports, events --------------------------------------------------------------


class Clock(Protocol):
    """The application's only source of time."""

    def now(self) -> datetime:
        """Wall-clock time as an aware datetime in UTC. May jump."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment. Never decreases."""

    def sleep(self, seconds: float) -> None:
        """Block for ``seconds``."""

    def every(self, seconds: float, action: Callable[[], None]) -> AbstractContextManager[None]:
        """While the context is open, call ``action`` every ``seconds`` in a background thread.

        Leaving the context waits for a running call. Exceptions from ``action`` are logged and do
        not end the calls. ``action`` runs in a copy of the caller's ``contextvars`` context.
        """


@dataclass(frozen=True)
class ReportFile:
    """One file of a report, stored under ``name``."""

    name: str
    content_type: str
    data: bytes


REPORT_PAGE = "report.html"
"""The report's main page. It is stored after the report's other files."""


class Reporter(Protocol):
    """Renders reports for people."""

    def render(self, report: StyleReport) -> Sequence[ReportFile]:
        """Return the report's files."""
