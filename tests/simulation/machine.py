"""A worker process on the timeline: the real use cases, with ports that lead into its world."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from adapters.memory import (
    MemoryBlobStore,
    MemoryInspector,
    MemoryQueue,
    MemoryReporter,
    MemoryTrainer,
)
from application.announce import Announcer
from application.journal import Journal, recorded_job
from application.ports import (
    Blob,
    Condition,
    Delivery,
    DeliveryLost,
    QueueUnavailable,
    StepReport,
    TrainerBroken,
    TrainingPlan,
)
from application.refuse_task import RefuseTask
from application.run_training import RunTraining
from application.seats import Seats
from application.stop import StopReason, StopSignal
from application.worker_loop import WorkerLoop
from domain.events import Event
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.location import Location
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric
from tests.simulation.clock import VirtualClock
from tests.simulation.network import Server
from tests.simulation.timeline import Process, Timeline
from tests.simulation.world import HOPELESS, LAYOUT, RULES, STEPS, Call, World

log = logging.getLogger(__name__)

PROGRESS_TIMEOUT = 5.0
"""Seconds that a progress call is waited for, by default."""
PLANNED = "a defect that was planned"


class Machine:
    """Takes tasks until it is told to stop, or is gone."""

    def __init__(
        self,
        world: World,
        name: str,
        chance: random.Random,
        *,
        step_seconds: float,
        together: int,
        happened: Callable[[Machine, Event], None],
    ) -> None:
        self.process = Process(name)
        self.stop = StopSignal()
        self._world = world
        self._chance = chance
        self._happened = happened
        self.clock = VirtualClock(world.timeline, self.process)
        self.connection = _Connection(world, self.process, chance)
        self.trainer = _Trainer(self.clock, world, step_seconds, together)
        blobs, notifier = _Blobs(world, self.process), _Backend(world, self.process)
        announcer = Announcer(notifier=notifier, clock=self.clock, random=chance.random)
        common: dict[str, Any] = {
            "blobs": blobs,
            "announcer": announcer,
            "clock": self.clock,
            "journal": Journal(blobs, self._note),
            "layout": LAYOUT,
            "rules": RULES,
            "worker": name,
        }
        run = RunTraining(
            **common,
            notifier=notifier,
            trainer=self.trainer,
            inspector=MemoryInspector(),
            reporter=MemoryReporter(),
            uploads=_Uploads(world.timeline, self.process),
            seats=Seats(together),
        )
        loop = WorkerLoop(
            queue=self.connection,
            parse=world.parse,
            run=run,
            refuse=RefuseTask(**common),
            clock=self.clock,
        )
        self._working = together
        for _ in range(together):
            world.timeline.spawn(self.process, lambda: self._work(loop))

    def terminate(self, grace: float) -> None:
        """SIGTERM, and the process's end when the grace is over."""
        self.stop.request(StopReason.SHUTDOWN, deadline=self.clock.monotonic() + grace)
        self._world.timeline.at(self._world.timeline.now + grace, self.kill)

    def kill(self) -> None:
        """SIGKILL. The broker notices at some time."""
        if not self.process.dead:
            self.process.dead = True
            later = self._world.timeline.now + self._chance.uniform(0, 120)
            self._world.timeline.at(later, self.connection.lose)

    def _work(self, loop: WorkerLoop) -> None:
        """What a crew does: the first loop that ends takes the others with it, in order."""
        try:
            loop(self.stop)
        except TrainerBroken:
            self.stop.request(StopReason.SHUTDOWN)
        self._working -= 1
        if not self._working:
            self.process.dead = True
            self.connection.lose()

    def _note(self, event: Event) -> None:
        self._world.events.append((self._world.timeline.now, self.process, event))
        self._happened(self, event)


class _Uploads(Executor):
    """A thread for every upload."""

    def __init__(self, timeline: Timeline, process: Process) -> None:
        self._timeline = timeline
        self._process = process

    def submit(self, action: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def carry_out() -> None:
            try:
                result = action(*args, **kwargs)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._timeline.spawn(self._process, carry_out)
        return future


class _Trainer(MemoryTrainer):
    """Whose device can break, and which has defects."""

    def __init__(self, clock: VirtualClock, world: World, step_seconds: float, seats: int) -> None:
        super().__init__(clock, step_seconds, seats)
        self.world = world
        self.broken = False
        self.defects = 0
        """That the next steps will meet."""

    @contextmanager
    def open(self, plan: TrainingPlan, resume: bytes | None) -> Iterator[Any]:
        with super().open(plan, resume) as session:
            yield _Session(session, self, hopeless=plan.style_id == HOPELESS)


class _Session:
    """Port ``TrainingSession``: another's, whose steps can fail."""

    def __init__(self, session: Any, trainer: _Trainer, *, hopeless: bool) -> None:
        self._session = session
        self._trainer = trainer
        self._hopeless = hopeless

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def advance(self) -> StepReport:
        if self._trainer.broken:
            raise TrainerBroken("the card answers no more")
        if self._trainer.defects:
            self._trainer.defects -= 1
            raise RuntimeError(PLANNED)
        report = self._session.advance()
        self._trainer.world.steps += 1
        if self._hopeless and report.step > STEPS // 2:
            raise TrainingFailed(Failure(FailureCode.LOSS_DIVERGED, "It did not learn."))
        return report


class _Blobs:
    """Port ``BlobStore``, over the network."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def get(self, at: Location, *, max_bytes: int | None = None) -> Blob:
        found = self._call(lambda blobs: blobs.get(at, max_bytes=max_bytes))
        assert isinstance(found, Blob)
        return found

    def put(
        self,
        at: Location,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        condition: Condition | None = None,
    ) -> str:
        world = self._world

        def write(blobs: MemoryBlobStore) -> str:
            etag = blobs.put(at, data, condition=condition)
            if LAYOUT.recorded_task(at) is not None:
                job = recorded_job(blobs, at)
                assert job is not None  # just written
                world.records.append((world.timeline.now, self._process, job))
            return etag

        put = self._call(write)
        assert isinstance(put, str)
        return put

    def delete(self, at: Location) -> None:
        self._call(lambda blobs: blobs.delete(at))

    def list(self, bucket: str, prefix: str) -> list[Location]:
        found = self._call(lambda blobs: blobs.list(bucket, prefix))
        assert isinstance(found, list)
        return found

    def _call(self, effect: Callable[[MemoryBlobStore], Any]) -> Any:
        world = self._world
        return world.network.call(self._process, world.store, lambda: effect(world.blobs))


class _Backend:
    """Port ``Notifier``, over the network."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._for_progress = Server(
            PROGRESS_TIMEOUT, world.backend.lost, world.backend.latency, world.backend.troubles
        )

    def progress(self, style_id: int, progress: Progress) -> None:
        self._call("progress", style_id, None)

    def completed(
        self, style_id: int, artifact: Artifact, metric: TrainingMetric, idempotency_key: str
    ) -> None:
        self._call("completed", style_id, idempotency_key)

    def failed(self, style_id: int, failure: Failure, idempotency_key: str) -> None:
        self._call("failed", style_id, idempotency_key)

    def _call(self, kind: str, style_id: int, key: str | None) -> None:
        world = self._world
        call = Call(kind, style_id, key, self._process, made_at=world.timeline.now)
        world.calls.append(call)

        def take() -> None:
            call.taken_at = world.timeline.now

        server = self._for_progress if kind == "progress" else world.backend
        world.network.call(self._process, server, take)
        call.answered_at = world.timeline.now


class _Connection:
    """Port ``Queue``: one connection to the broker, which has what is delivered over it."""

    def __init__(self, world: World, process: Process, chance: random.Random) -> None:
        self._world = world
        self._process = process
        self._chance = chance
        self._held: list[Delivery] = []

    def lose(self) -> None:
        """The connection breaks: the broker takes back what it has delivered."""
        for delivery in self._held:
            self._world.queue.take_back(delivery)
        self._held.clear()

    def publish(self, body: bytes) -> None:
        raise AssertionError("no worker publishes")

    def receive(self, timeout: float) -> Delivery | None:
        if self._broken():
            self.lose()
            raise QueueUnavailable("no broker")
        delivery = self._world.queue.receive(timeout)
        if delivery is not None:
            self._held.append(delivery)
        return delivery

    def acknowledge(self, delivery: Delivery) -> None:
        self._settle(delivery, lambda queue: queue.acknowledge(delivery))

    def retry_later(self, delivery: Delivery, delay: float, reason: str) -> None:
        self._settle(delivery, lambda queue: queue.retry_later(delivery, delay, reason))

    def dead_letter(
        self, delivery: Delivery, reason: str, details: Mapping[str, str] | None = None
    ) -> None:
        self._settle(delivery, lambda queue: queue.dead_letter(delivery, reason, details))

    def hand_back(self, delivery: Delivery) -> None:
        self._settle(delivery, lambda queue: queue.hand_back(delivery))

    def _settle(self, delivery: Delivery, settle: Callable[[MemoryQueue], None]) -> None:
        broken = self._broken()
        if delivery not in self._held:
            raise DeliveryLost("the connection broke meanwhile")
        if not broken:
            self._held.remove(delivery)
            settle(self._world.queue)
            return
        # Done, half of it done (put aside, and not acknowledged), or not done.
        done = self._chance.random()
        if done < 0.6:
            self._held.remove(delivery)
            settle(self._world.queue)
        if 0.3 < done < 0.6:
            self._world.queue.publish(delivery.body)
        self.lose()
        raise QueueUnavailable("no broker")

    def _broken(self) -> bool:
        trouble = self._world.broker.trouble(self._process, self._world.timeline.now)
        if trouble is None or self._chance.random() >= trouble.chance:
            return False
        self._world.timeline.sleep(self._chance.uniform(0, 2))
        return True
