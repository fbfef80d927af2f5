"""A simulated worker process: the real use cases, with ports connected to its world."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from adapters.memory import (
    MemoryInspector,
    MemoryReporter,
    MemoryTrainer,
)
from application.circuit_breaker import CircuitBreaker
from application.event_bus import WorkerEvent
from application.job_store import JobStore
from application.notify_outcome import OutcomeNotifier
from application.plan_training import TrainingPlanner
from application.ports import TrainerBroken
from application.reject_invalid_task import RejectInvalidTask
from application.run_training import RunTraining
from application.slots import AdmissionQueue
from application.stop_signal import StopReason, StopSignal
from application.style_report import ReportWriter
from application.training_loop import TrainingLoop
from application.worker_loop import WorkerLoop
from domain.events import Event
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.progress import StepReport
from domain.training_plan import TrainingPlan
from tests.application.world import no_lora
from tests.simulation.clock import VirtualClock
from tests.simulation.connections import Backend, Blobs, Connection
from tests.simulation.timeline import Process, Timeline
from tests.simulation.world import CONFIG, DIVERGING_STYLE, KEYS, STEPS, World

log = logging.getLogger(__name__)

PLANNED = "a defect that was planned"


class Machine:
    """Runs tasks until it is stopped or dies."""

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
        self.connection = Connection(world, self.process, chance)
        self.trainer = _Trainer(self.clock, world, step_seconds, together)
        blobs, notifier = Blobs(world, self.process), Backend(world, self.process)
        notify_outcome = OutcomeNotifier(notifier=notifier, clock=self.clock, random=chance.random)
        store = JobStore(
            blobs=blobs,
            keys=KEYS,
            clock=self.clock,
            events=self._note,
            worker=name,
            lease_terms=CONFIG.lease,
        )
        run = RunTraining(
            store=store,
            plan=TrainingPlanner(
                store=store, inspector=MemoryInspector(), load_lora=no_lora, config=CONFIG
            ),
            trainer=self.trainer,
            admission=AdmissionQueue(together),
            loop=TrainingLoop(
                store=store,
                notifier=notifier,
                config=CONFIG,
                uploads=_Uploads(world.timeline, self.process),
            ),
            write_report=ReportWriter(store=store, reporter=MemoryReporter()),
            notify_outcome=notify_outcome,
            config=CONFIG,
        )
        loop = WorkerLoop(
            queue=self.connection,
            parse=world.parse,
            run=run,
            reject=RejectInvalidTask(store=store, notify_outcome=notify_outcome, config=CONFIG),
            clock=self.clock,
            events=lambda _event: None,
            circuit_breaker=CircuitBreaker(self.clock),
        )
        self._working = together
        for _ in range(together):
            world.timeline.spawn(self.process, lambda: self._work(loop))

    def terminate(self, timeout: float) -> None:
        """SIGTERM; the process ends when the shutdown timeout is over."""
        self.stop.request(StopReason.SHUTDOWN, deadline=self.clock.monotonic() + timeout)
        self._world.timeline.at(self._world.timeline.now + timeout, self.kill)

    def kill(self) -> None:
        """SIGKILL. The broker notices after some time."""
        if not self.process.dead:
            self.process.dead = True
            later = self._world.timeline.now + self._chance.uniform(0, 120)
            self._world.timeline.at(later, self.connection.lose)

    def _work(self, loop: WorkerLoop) -> None:
        """Work like a worker pool: when the first loop ends, it stops the others gracefully."""
        try:
            loop(self.stop)
        except TrainerBroken:
            self.stop.request(StopReason.SHUTDOWN)
        self._working -= 1
        if not self._working:
            self.process.dead = True
            self.connection.lose()

    def _note(self, event: WorkerEvent) -> None:
        if not isinstance(event, Event):
            return  # a lease was written
        self._world.events.append((self._world.timeline.now, self.process, event))
        self._happened(self, event)


class _Uploads(Executor):
    """Runs every upload in its own thread."""

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
    """A trainer whose device can break, and which has defects."""

    def __init__(self, clock: VirtualClock, world: World, step_seconds: float, slots: int) -> None:
        super().__init__(clock, step_seconds, slots)
        self.world = world
        self.broken = False
        self.defects = 0
        """Number of coming steps that fail with a defect."""

    @contextmanager
    def open(self, plan: TrainingPlan, resume: bytes | None) -> Iterator[Any]:
        with super().open(plan, resume) as session:
            yield _Session(session, self, diverges=plan.style_id == DIVERGING_STYLE)


class _Session:
    """Port ``TrainingSession``: wraps another session, and its steps can fail."""

    def __init__(self, session: Any, trainer: _Trainer, *, diverges: bool) -> None:
        self._session = session
        self._trainer = trainer
        self._diverges = diverges

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def advance(self) -> StepReport:
        if self._trainer.broken:
            raise TrainerBroken("the device no longer responds")
        if self._trainer.defects:
            self._trainer.defects -= 1
            raise RuntimeError(PLANNED)
        report: StepReport = self._session.advance()
        self._trainer.world.steps += 1
        if self._diverges and report.step > STEPS // 2:
            raise TrainingFailed(Failure(FailureCode.LOSS_DIVERGED, "It did not learn."))
        return report
