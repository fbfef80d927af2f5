"""All dependencies in memory; any one call can fail, or crash the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from adapters.memory import (
    InlineExecutor,
    ManualClock,
    MemoryBlobStore,
    MemoryInspector,
    MemoryNotifier,
    MemoryReporter,
    MemoryTrainer,
)
from application.event_bus import MessageSettled, TaskReceived
from application.job_store import JobStore, StorageKeys
from application.lease import Lease, LeaseTerms
from application.notify_outcome import OutcomeNotifier
from application.plan_training import TrainingPlanner
from application.ports import BlobMissing, BlobUnavailable, Notifier, TrainingSession
from application.run_training import RunTraining
from application.settlement import Requeue, RetryLater, Settlement
from application.slots import AdmissionQueue
from application.stop_signal import StopSignal
from application.style_report import ReportWriter
from application.training_loop import TrainingLoop
from application.worker_config import WorkerConfig
from domain.events import Event
from domain.job import TrainingJob
from domain.location import Bucket, Location
from domain.parameters import RequestedParameters
from domain.task import TrainingTask
from domain.training_plan import InitialLora

CONFIG = WorkerConfig(
    fetch_concurrency=1,
    progress_every=7.0,
    cancel_poll=3.0,
    lease=LeaseTerms(12.0),
)
KEYS = StorageKeys(Bucket("models"))
TASK_ID = "550e8400-e29b-41d4-a716-446655440000"
STORE_PARTS = ("blobs", "keys", "clock", "events", "worker", "config")
TRIES = 12
"""Deliveries after which a message should long be settled."""


def a_task(images: int = 10, **named: Any) -> TrainingTask:
    """A task of 25 epochs by default."""
    return TrainingTask(
        task_id=TASK_ID,
        style_id=7,
        images=tuple(Location("media", f"7/{n:02d}.jpg") for n in range(images)),
        tags=("watercolour",),
        requested=RequestedParameters({"epochs": 25, "batch_size": 4, **named}),
    )


def received(task: TrainingTask) -> TaskReceived:
    """What observers get before a task is run."""
    return TaskReceived(task_id=task.task_id, style_id=task.style_id, created_at=task.created_at)


def settled(task: TrainingTask, settlement: Settlement) -> MessageSettled:
    """What observers get when its message is settled."""
    return MessageSettled(task_id=task.task_id, settlement=settlement)


class Crash(BaseException):
    """The process has died; do not catch this."""


@dataclass
class Fault:
    """Applies once, at the call of that number."""

    at: int
    error: Callable[[], BaseException]
    after: bool = False
    """Apply after the call has taken effect, as with a lost response."""
    calls: list[str] = field(default_factory=list)
    dead: bool = False

    def wrap(self, name: str, target: Any) -> Any:
        """``target`` with every public method counted."""
        return _Faulty(name, target, self)

    def call(self, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make the call, or let it fail."""
        if self.dead:
            raise Crash
        self.calls.append(name)
        crashes = len(self.calls) == self.at
        if crashes and not self.after:
            self._crash()
        result = method(*args, **kwargs)
        if crashes:
            self._crash()
        return result

    def _crash(self) -> None:
        error = self.error()
        self.dead = isinstance(error, Crash)
        raise error


class _Faulty:
    def __init__(self, name: str, target: Any, fault: Fault) -> None:
        self._name, self._target, self._fault = name, target, fault

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found
        return lambda *args, **kwargs: self._fault.call(
            f"{self._name}.{name}", found, *args, **kwargs
        )


def no_lora(named: str) -> InitialLora:
    """Finds no LoRA for any ``network_weights``."""
    raise BlobMissing(named)


class World:
    """What outlives workers: the store, the backend and time."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.blobs = MemoryBlobStore()
        self.notifier = MemoryNotifier()
        self.trainer = MemoryTrainer(self.clock)
        self.events: list[Event] = []
        self.workers = 0
        for n in range(30):
            self.blobs.put(Location("media", f"7/{n:02d}.jpg"), f"image {n}".encode())

    def worker(self, fault: Fault | None = None, **parts: Any) -> RunTraining:
        """The use case as one more worker has it."""
        self.workers += 1
        blobs, notifier = self.blobs, self.notifier
        trainer: Any = MemoryTrainer(self.clock) if fault else self.trainer
        if fault is not None:
            blobs, notifier = fault.wrap("blobs", blobs), fault.wrap("notifier", notifier)
        known: dict[str, Any] = {
            "blobs": blobs,
            "notifier": notifier,
            "trainer": trainer,
            "inspector": MemoryInspector(),
            "load_lora": no_lora,
            "reporter": MemoryReporter(),
            "clock": self.clock,
            "events": self.events.append,
            "keys": KEYS,
            "config": CONFIG,
            "worker": f"worker-{self.workers}",
            "uploads": InlineExecutor(),
            "admission": AdmissionQueue(),
            **parts,
        }
        config: WorkerConfig = known["config"]
        store = self.store(**{name: known[name] for name in STORE_PARTS})
        return RunTraining(
            store=store,
            plan=TrainingPlanner(
                store=store,
                inspector=known["inspector"],
                load_lora=known["load_lora"],
                config=config,
                captioner=known.get("captioner"),
            ),
            trainer=known["trainer"],
            admission=known["admission"],
            loop=TrainingLoop(
                store=store,
                notifier=known["notifier"],
                config=config,
                uploads=known["uploads"],
            ),
            write_report=ReportWriter(store=store, reporter=known["reporter"]),
            notify_outcome=known.get("notify_outcome") or self.notify_outcome(known["notifier"]),
            config=config,
        )

    def store(self, **parts: Any) -> JobStore:
        """The store of jobs as a worker has it."""
        config = parts.pop("config", CONFIG)
        known = {
            "blobs": self.blobs,
            "keys": KEYS,
            "clock": self.clock,
            "events": self.events.append,
            "worker": "observer",
            **parts,
        }
        return JobStore(**known, lease_terms=config.lease)

    def lease(self, owner: str, terms: LeaseTerms = CONFIG.lease) -> Lease:
        """The task's lease, held by the named worker."""
        return replace(self.store(worker=owner), lease_terms=terms).lease(TASK_ID)

    def notify_outcome(self, notifier: Notifier) -> OutcomeNotifier:
        """Makes the completion calls, without jitter."""
        return OutcomeNotifier(notifier=notifier, clock=self.clock, random=lambda: 1.0)

    def until_settled(self, task: TrainingTask) -> Settlement:
        """Redeliver to new workers, each at its time, until the message is settled."""
        for retry in range(TRIES):
            settlement = self.worker()(task, StopSignal(), retry)
            if isinstance(settlement, RetryLater):
                self.clock.advance(settlement.delay)
            elif not isinstance(settlement, Requeue):
                return settlement
        raise AssertionError(f"not settled after {TRIES} tries: {settlement}")

    def job(self) -> TrainingJob:
        """The job as its journal shows it."""
        return self.store().open(TrainingJob(task_id=TASK_ID, style_id=7)).job

    def weights(self) -> bytes:
        """The finished style."""
        return self.blobs.get(KEYS.weights(7)).data

    def leases(self) -> list[Location]:
        """All stored leases."""
        return [at for at in self.blobs.blobs if at.name == "lease.json"]


class Watched(MemoryTrainer):
    """A trainer that calls the test before one of its steps."""

    def __init__(self, world: World, before: int, action: Any) -> None:
        super().__init__(world.clock)
        self._before, self._action = before, action

    @contextmanager
    def open(self, plan: Any, resume: bytes | None) -> Iterator[TrainingSession]:
        with super().open(plan, resume) as session:
            advance, steps = session.advance, 0

            def watched() -> Any:
                nonlocal steps
                steps += 1
                if steps == self._before:
                    self._action()
                return advance()

            session.advance = watched  # type: ignore[method-assign]  # a double of one call
            yield session


class AwayAfter:
    """A store that is unavailable for ``seconds``, starting at the first write of a kind."""

    def __init__(self, world: World, first: Callable[[Location, bytes], bool], seconds: float):
        self._world, self._first, self._seconds = world, first, seconds
        self._until: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world.blobs, name)

    def put(self, at: Location, data: bytes, **options: Any) -> str:
        now = self._world.clock.monotonic()
        if self._until is None and self._first(at, data):
            self._until = now + self._seconds
        if self._until is not None and now < self._until:
            raise BlobUnavailable("503")
        return self._world.blobs.put(at, data, **options)


def stored_epochs(world: World, kind: str = "checkpoints") -> list[int]:
    """The epochs with a checkpoint, or style, in the store."""
    stored = world.blobs.list(Bucket("models"), f"jobs/{TASK_ID}/{kind}/")
    return [int(at.name.split("_")[1].removesuffix(".safetensors")) for at in stored]
