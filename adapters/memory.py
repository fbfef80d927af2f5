"""All ports in memory, for fast tests. They pass the same contract tests as the real adapters."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import ParamSpec, TypeVar

from adapters.common.queue_ports import DeadLetterAction, DeadMessage
from application.ports import (
    Blob,
    BlobMissing,
    BlobTooLarge,
    CheckpointRejected,
    Clock,
    Condition,
    Delivery,
    DeliveryLost,
    IfAbsent,
    IfMatch,
    PreconditionFailed,
    ReportFile,
    TrainingSession,
)
from application.stop_signal import StopSignal
from domain.failure import Failure
from domain.image import ImageFacts, ImageRejected, PreparedImage
from domain.location import Bucket, Location
from domain.loss_curve import EpochRecord
from domain.parameters import TrainingParameters
from domain.progress import Progress, StepReport
from domain.report import BaseFacts, StyleReport
from domain.results import Artifact, Checkpoint, Preview, PreviewScores, TrainingMetric
from domain.training_plan import TrainingPlan

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


# --- Clock -------------------------------------------------------------------------------


class _Timer:
    """A periodic action."""

    def __init__(self, period: float, first: float, action: Callable[[], None]) -> None:
        self.period = period
        self.due = first
        self._action = action
        self._context = copy_context()
        self._calling = threading.RLock()
        self._running = self._closed = False

    def fire(self) -> None:
        """Call the action, unless it is running or the timer is closed."""
        if self._running:
            return
        with self._calling:
            if self._closed:
                return
            self._running = True
            try:
                self._context.run(self._action)
            except Exception:
                log.exception("a periodic action failed")
            finally:
                self._running = False

    def close(self) -> None:
        with self._calling:
            self._closed = True


class ManualClock:
    """Port ``Clock``. Time passes only through ``sleep`` and ``advance``."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._lock = threading.Lock()
        self._wall = start
        self._elapsed = 0.0
        self._timers: list[_Timer] = []

    def now(self) -> datetime:
        """Wall-clock time."""
        return self._wall + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Seconds since the start."""
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, and call due timers at their times, in order."""
        target = self._elapsed + max(0.0, seconds)
        while True:
            with self._lock:
                due = [timer for timer in self._timers if timer.due <= target]
                timer = min(due, key=lambda timer: timer.due, default=None)
                self._elapsed = max(self._elapsed, target if timer is None else timer.due)
                if timer is None:
                    return
                timer.due += timer.period
            timer.fire()

    sleep = advance

    def jump(self, seconds: float) -> None:
        """Set only the wall clock forward or back."""
        self._wall += timedelta(seconds=seconds)

    @contextmanager
    def every(self, seconds: float, action: Callable[[], None]) -> Iterator[None]:
        """Call ``action`` whenever another ``seconds`` have passed."""
        timer = _Timer(seconds, self._elapsed + seconds, action)
        with self._lock:
            self._timers.append(timer)
        try:
            yield
        finally:
            with self._lock:
                self._timers.remove(timer)
            timer.close()


class InlineExecutor(Executor):
    """Runs each action immediately in the calling thread, for a deterministic order."""

    def submit(
        self, action: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs
    ) -> Future[T]:
        """Run it. Raises errors outside ``Exception``, such as the end of the process."""
        future: Future[T] = Future()
        try:
            future.set_result(action(*arguments, **keywords))
        except Exception as error:
            future.set_exception(error)
        return future


# --- Queue -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Waiting:
    body: bytes
    retries: int = 0
    redelivered: bool = False
    visible_at: float = 0.0


class MemoryQueue:
    """Ports ``Queue``, ``DeadLetters`` and ``QueueDepths``.

    An idle ``receive`` advances the clock by its timeout, then looks again.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._unsettled: dict[str, Delivery] = {}
        self._dead: list[DeadMessage] = []
        self._delivered = 0

    @property
    def waiting(self) -> list[bytes]:
        """Messages without a holder, including delayed ones."""
        with self._lock:
            return [message.body for message in self._waiting]

    @property
    def dead(self) -> list[DeadMessage]:
        """Dead letters, oldest first."""
        with self._lock:
            return list(self._dead)

    @property
    def unsettled(self) -> list[Delivery]:
        """Deliveries that are not settled."""
        with self._lock:
            return list(self._unsettled.values())

    def lose_all(self) -> None:
        """Requeue every delivery, as a broker does when the connection is lost."""
        for delivery in reversed(self.unsettled):
            self.take_back(delivery)

    def take_back(self, delivery: Delivery) -> None:
        """Requeue a delivery, unless it is settled."""
        with self._lock:
            if self._unsettled.pop(delivery.id, None) is not None:
                self._waiting.insert(0, _back(delivery))

    def publish(self, body: bytes) -> None:
        """Put a message at the end."""
        with self._lock:
            self._waiting.append(_Waiting(body))

    def receive(self, timeout: float) -> Delivery | None:
        """The next message that is visible now or after ``timeout``."""
        delivery = self._take()
        if delivery is None:
            self._clock.sleep(timeout)
            delivery = self._take()
        return delivery

    def acknowledge(self, delivery: Delivery) -> None:
        """Remove the message."""
        with self._lock:
            self._settle(delivery)

    def retry_later(
        self, delivery: Delivery, delay: float, reason: str, *, counts: bool = True
    ) -> None:
        """Put the message at the end, invisible for ``delay`` seconds."""
        with self._lock:
            self._settle(delivery)
            visible_at = self._clock.monotonic() + delay
            log.info("a message waits for %.0f s: %s", delay, reason)
            self._waiting.append(
                _Waiting(delivery.body, delivery.retries + counts, visible_at=visible_at)
            )

    def dead_letter(
        self, delivery: Delivery, reason: str, details: Mapping[str, str] | None = None
    ) -> None:
        """Move the message to ``dead``."""
        with self._lock:
            self._settle(delivery)
            self._dead.append(
                DeadMessage(delivery.body, reason, dict(details or {}), self._clock.now())
            )

    def requeue(self, delivery: Delivery) -> None:
        """Put the message at the front."""
        with self._lock:
            self._settle(delivery)
            self._waiting.insert(0, _back(delivery))

    def process_dead_letters(
        self, decide: Callable[[DeadMessage], DeadLetterAction]
    ) -> list[DeadMessage]:
        """Pass the dead letters to ``decide`` and apply it."""
        shown = self.dead
        for letter in shown:
            action = decide(letter)
            with self._lock:
                if action is not DeadLetterAction.KEEP:
                    self._dead.remove(letter)
                if action is DeadLetterAction.PUT_BACK:
                    self._waiting.append(_Waiting(letter.body))
        return shown

    def depths(self) -> Mapping[str, int]:
        """Numbers of waiting messages and of dead letters."""
        with self._lock:
            return {"waiting": len(self._waiting), "dead": len(self._dead)}

    def _take(self) -> Delivery | None:
        with self._lock:
            now = self._clock.monotonic()
            message = next((m for m in self._waiting if m.visible_at <= now), None)
            if message is None:
                return None
            self._waiting.remove(message)
            self._delivered += 1
            delivery = Delivery(
                str(self._delivered), message.body, message.retries, message.redelivered
            )
            self._unsettled[delivery.id] = delivery
            return delivery

    def _settle(self, delivery: Delivery) -> None:
        if self._unsettled.pop(delivery.id, None) is None:
            raise DeliveryLost(f"delivery {delivery.id} is no longer ours")


def _back(delivery: Delivery) -> _Waiting:
    return _Waiting(delivery.body, delivery.retries, redelivered=True)


# --- BlobStore ---------------------------------------------------------------------------


class MemoryBlobStore:
    """Port ``BlobStore``. Every bucket exists."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: dict[Location, bytes] = {}

    @property
    def blobs(self) -> dict[Location, bytes]:
        """A copy of all blobs."""
        with self._lock:
            return dict(self._blobs)

    def get(self, at: Location, *, max_bytes: int | None = None) -> Blob:
        """Read a blob."""
        with self._lock:
            data = self._blobs.get(at)
        if data is None:
            raise BlobMissing(str(at))
        if max_bytes is not None and len(data) > max_bytes:
            raise BlobTooLarge(f"{at} has {len(data)} bytes, more than {max_bytes}")
        return Blob(data, _etag(data))

    def put(
        self,
        at: Location,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",  # noqa: ARG002 - the port's; not kept
        condition: Condition | None = None,
    ) -> str:
        """Write a blob."""
        with self._lock:
            found = self._blobs.get(at)
            match condition:
                case IfAbsent() if found is not None:
                    raise PreconditionFailed(f"{at} exists")
                case IfMatch(etag) if found is None or _etag(found) != etag:
                    raise PreconditionFailed(f"{at} has changed since it was read")
            self._blobs[at] = bytes(data)
        return _etag(data)

    def delete(self, at: Location) -> None:
        """Remove a blob."""
        with self._lock:
            self._blobs.pop(at, None)

    def list(self, bucket: Bucket, prefix: str) -> list[Location]:
        """Blobs by prefix."""
        with self._lock:
            return sorted(
                at
                for at in self._blobs
                if (at.bucket, at.scheme) == (bucket.name, bucket.scheme)
                and at.key.startswith(prefix)
            )


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- Notifier, inspector, reporter -------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call to the backend."""

    kind: str
    """``progress``, ``completed`` or ``failed``."""
    style_id: int
    payload: Progress | tuple[Artifact, TrainingMetric] | Failure
    task_id: str | None = None


class MemoryNotifier:
    """Port ``Notifier``. Remembers every call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @property
    def final(self) -> list[Call]:
        """The calls that are shown to the artist."""
        return [call for call in self.calls if call.kind != "progress"]

    def progress(self, style_id: int, progress: Progress) -> None:
        """Record a progress call."""
        self.calls.append(Call("progress", style_id, progress))

    def completed(
        self, task_id: str, style_id: int, artifact: Artifact, metric: TrainingMetric
    ) -> None:
        """Record a success."""
        self.calls.append(Call("completed", style_id, (artifact, metric), task_id))

    def failed(self, task_id: str, style_id: int, failure: Failure) -> None:
        """Record a failure."""
        self.calls.append(Call("failed", style_id, failure, task_id))

    def has_arrived(self, task_id: str, style_id: int, outcome: Artifact | Failure) -> bool | None:
        """Whether a success is recorded; None for failures, which the platform does not show."""
        if isinstance(outcome, Failure):
            return None
        final = [call for call in self.final if call.style_id == style_id]
        if not final or final[-1].kind != "completed":
            return False
        payload = final[-1].payload
        same = isinstance(payload, tuple) and payload[0].sha256 == outcome.sha256
        return same and final[-1].task_id == task_id


class MemoryInspector:
    """Port ``ImageInspector``. Accepts any bytes except those that begin with ``broken``."""

    def inspect(
        self,
        data: bytes,
        resolution: int,  # noqa: ARG002 - bytes have no resolution
        stop: StopSignal,
    ) -> PreparedImage:
        """Facts derived from the bytes, which are returned unchanged."""
        stop.check()
        if data.startswith(b"broken"):
            raise ImageRejected("the file is damaged")
        digest = hashlib.sha256(data).digest()
        facts = ImageFacts(
            width=256 + digest[0],
            height=256 + digest[1],
            sha256=digest.hex(),
            perceptual_hash=int.from_bytes(digest[:8], "big"),
        )
        return PreparedImage(facts, data)


class MemoryReporter:
    """Port ``Reporter``. Renders one line."""

    def render(self, report: StyleReport) -> Sequence[ReportFile]:
        """A report of one page."""
        page = f"<!doctype html><title>Style {report.task.style_id}</title>"
        return [ReportFile("report.html", "text/html; charset=utf-8", page.encode())]


# --- Trainer -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _RunState:
    """State of a run."""

    plan: str
    """Hash of the plan."""
    step: int
    digest: str
    """Hash chained over the plan and every step, in place of weights."""


class MemorySession:
    """Port ``TrainingSession``: hashes in place of training; each step takes clock time."""

    def __init__(
        self, plan: TrainingPlan, clock: Clock, step_seconds: float, resume: bytes | None
    ) -> None:
        self._plan = plan
        self._clock = clock
        self._step_seconds = step_seconds
        self._steps_per_epoch = math.ceil(len(plan.images) / plan.parameters.batch_size)
        fingerprint = _fingerprint(plan)
        self._state = _RunState(fingerprint, 0, fingerprint)
        if resume is not None:
            self._state = _decode(resume, fingerprint)
        self._restored: _RunState | None = None

    @property
    def total_steps(self) -> int:
        """Steps in the whole run."""
        return self._plan.parameters.epochs * self._steps_per_epoch

    @property
    def finished(self) -> bool:
        """True after the last step."""
        return self._state.step == self.total_steps

    @property
    def history(self) -> Sequence[EpochRecord]:
        """Every finished epoch; the loss falls as 1/2, 1/3, 1/4."""
        rate = self._plan.parameters.learning_rate
        return [EpochRecord(epoch, 1 / (1 + epoch), rate) for epoch in range(1, self._epoch + 1)]

    @property
    def baseline(self) -> EpochRecord | None:
        """None: nothing is evaluated."""
        return None

    @property
    def peak_memory(self) -> int:
        """The size of the images."""
        return sum(len(image.data) for image in self._plan.images)

    def advance(self) -> StepReport:
        """Run the next step."""
        if self.finished:
            raise RuntimeError("no step is left")
        self._clock.sleep(self._step_seconds)
        step = self._state.step + 1
        digest = hashlib.sha256(f"{self._state.digest} {step}".encode()).hexdigest()
        self._state = replace(self._state, step=step, digest=digest)
        return StepReport(self._epoch, step, epoch_finished=step % self._steps_per_epoch == 0)

    def checkpoint(self) -> Checkpoint:
        """The run's state."""
        data = json.dumps(asdict(self._state)).encode()
        return Checkpoint(self._epoch, self._state.step, data)

    def weights(self) -> bytes:
        """Bytes that change if a step is lost, repeated or reordered."""
        return f"weights {self._shown.digest}".encode()

    def restore(self, checkpoint: bytes) -> None:
        """Use an earlier checkpoint's hash as weights."""
        self._restored = _decode(checkpoint, self._state.plan)

    def previews(
        self, *, with_lora: bool, check: Callable[[], None] = lambda: None
    ) -> tuple[Preview, ...]:
        """Bytes that begin like a PNG."""
        check()
        drawn_by = self._shown.digest if with_lora else "the base"
        prompts = self._plan.parameters.sample_prompts or ("a painting",)
        return tuple(
            Preview(prompt, seed, b"\x89PNG\r\n\x1a\n" + f"{prompt} by {drawn_by}".encode())
            for seed, prompt in enumerate(prompts)
        )

    def score_previews(
        self,
        previews: tuple[Preview, ...],
        check: Callable[[], None] = lambda: None,  # noqa: ARG002 - takes no time
    ) -> PreviewScores | None:
        """Closeness grows with each step."""
        return PreviewScores(self._shown.step / self.total_steps, 1.0) if previews else None

    @property
    def _shown(self) -> _RunState:
        return self._restored or self._state

    @property
    def _epoch(self) -> int:
        return self._state.step // self._steps_per_epoch


class MemoryTrainer:
    """Port ``Trainer``. Deterministic; a step takes ``step_seconds`` on the clock.

    With more than one slot, runs of equal rank can be open together.
    """

    def __init__(self, clock: Clock, step_seconds: float = 1.0, slots: int = 1) -> None:
        self._clock = clock
        self._step_seconds = step_seconds
        self._slots = slots
        self._open: list[Hashable | None] = []
        self.opened = 0
        """Sessions opened so far."""
        self.max_at_once = 0
        """Maximum sessions that were open together."""

    @property
    def base(self) -> BaseFacts:
        """A fictitious model."""
        return BaseFacts("memory", is_sd15=True)

    @property
    def native_resolution(self) -> int:
        """The resolution of SD 1.5."""
        return 512

    def peft_files(self, weights: bytes) -> Mapping[str, bytes]:
        """The weights and an empty configuration."""
        return {"adapter_model.safetensors": weights, "adapter_config.json": b"{}"}

    @contextmanager
    def open(self, plan: TrainingPlan, resume: bytes | None) -> Iterator[TrainingSession]:
        """Open a run."""
        key = self.batch_key(plan.parameters)
        if self._open and (key is None or self._open != [key] * len(self._open)):
            raise RuntimeError("the trainer has an open run that this one cannot join")
        if len(self._open) >= self._slots:
            raise RuntimeError(f"all {self._slots} slots of the trainer are taken")
        session = MemorySession(plan, self._clock, self._step_seconds, resume)
        self._open.append(key)
        self.opened += 1
        self.max_at_once = max(self.max_at_once, len(self._open))
        try:
            yield session
        finally:
            self._open.remove(key)

    def batch_key(self, parameters: TrainingParameters) -> Hashable | None:
        """The rank, if there is more than one slot."""
        return parameters.rank if self._slots > 1 else None


class MemoryCaptioner:
    """Names the bytes of an image; counts the images it described."""

    def __init__(self, before: str = "a painting of ") -> None:
        self.described = 0
        self._before = before

    def describe(self, images: Sequence[bytes], stop: StopSignal) -> list[str]:
        """Describe each image."""
        stop.check()
        self.described += len(images)
        return [self._before + data.decode(errors="replace") for data in images]


def _fingerprint(plan: TrainingPlan) -> str:
    images = [
        (image.name, image.caption, image.generated_caption, _etag(image.data))
        for image in plan.images
    ]
    whole = repr((plan.style_id, images, plan.tags, plan.parameters))
    return hashlib.sha256(whole.encode()).hexdigest()


def _decode(data: bytes, fingerprint: str) -> _RunState:
    try:
        state = _RunState(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise CheckpointRejected(f"the checkpoint is damaged: {error}") from None
    if state.plan != fingerprint:
        raise CheckpointRejected("the checkpoint belongs to another run")
    return state
