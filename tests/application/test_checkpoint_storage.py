"""Checkpoints are stored while training continues, and recorded once stored."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import pytest

from application import checkpoint_storage
from application.ports import BlobDenied, BlobUnavailable
from application.run_training import RunTraining
from application.settlement import Ack, DeadLetter, Requeue, RetryLater
from application.stop_signal import StopReason, StopSignal
from domain.events import CheckpointSaved, ProgressMade
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.job import JobState
from domain.location import Location
from tests.application.world import CONFIG, Watched, World, a_task

WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Gated:
    """The world's store; ``arrive`` is called before each checkpoint is stored, and may block.

    A task of 25 epochs has 3 steps in each, and so a checkpoint at step 30, 60 and 75.
    """

    def __init__(self, world: World, arrive: Callable[[], None]) -> None:
        self._blobs = world.blobs
        self._arrive = arrive
        self.sent: list[tuple[str, str]] = []
        """For each checkpoint, the thread that uploaded it, and that thread's value of ``WHO``."""

    def put(self, at: Location, data: bytes, **how: Any) -> str:
        if "checkpoints/" in at.key:
            self.sent.append((threading.current_thread().name, WHO.get()))
            self._arrive()
        return self._blobs.put(at, data, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def uploads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, "upload") as executor:
        yield executor


def a_worker(world: World, **parts: Any) -> RunTraining:
    """A worker without previews: drawing them waits until the checkpoint is stored."""
    return world.worker(config=replace(CONFIG, preview_share=0.0), **parts)


def waiting(gate: threading.Event) -> Callable[[], None]:
    def wait() -> None:
        assert gate.wait(30)

    return wait


def saved(world: World) -> list[int]:
    return [e.checkpoint.step for e in world.events if isinstance(e, CheckpointSaved)]


def steps_made(world: World) -> int:
    made = [e.progress.current_step for e in world.events if isinstance(e, ProgressMade)]
    return max(made, default=0)


def test_training_continues_and_a_checkpoint_is_recorded_once_stored(
    world: World, gate: threading.Event, uploads: ThreadPoolExecutor
) -> None:
    before: list[Any] = []

    def at_step_50() -> None:
        before.extend([world.job().checkpoint, saved(world)])
        gate.set()
        uploads.submit(int).result(30)  # comes after it

    blobs = Gated(world, waiting(gate))
    trainer = Watched(world, 50, at_step_50)
    WHO.set("the job")
    assert a_worker(world, blobs=blobs, trainer=trainer, uploads=uploads)(
        a_task(), StopSignal()
    ) == (Ack())
    assert before == [None, []]
    assert saved(world) == [30, 60, 75]
    first = next(e for e in world.events if isinstance(e, CheckpointSaved))
    just_before = world.events[world.events.index(first) - 1]
    assert isinstance(just_before, ProgressMade)
    assert just_before.progress.current_step == 50
    assert blobs.sent == [("upload_0", "the job")] * 3

    undisturbed = World()
    a_worker(undisturbed)(a_task(), StopSignal())
    assert world.weights() == undisturbed.weights()
    assert world.job().checkpoint == undisturbed.job().checkpoint


def test_one_checkpoint_is_stored_at_a_time(
    world: World, gate: threading.Event, uploads: ThreadPoolExecutor
) -> None:
    reached: list[int] = []

    def first_of_all() -> None:
        if not gate.is_set():
            # As long as it takes the training to come to the next checkpoint, and then some.
            deadline = time.monotonic() + 30
            while steps_made(world) < 60 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            reached.append(steps_made(world))
            gate.set()

    blobs = Gated(world, first_of_all)
    assert a_worker(world, blobs=blobs, uploads=uploads)(a_task(), StopSignal()) == Ack()
    assert reached == [60]
    assert saved(world) == [30, 60, 75]


def test_previews_are_drawn_once_the_checkpoint_is_recorded(
    world: World, gate: threading.Event, uploads: ThreadPoolExecutor
) -> None:
    """Drawing may take long, and may fail the run."""
    threading.Timer(0.2, gate.set).start()
    kept: list[list[int]] = []

    class Looking(Gated):
        def put(self, at: Location, data: bytes, **how: Any) -> str:
            if "previews/" in at.key:
                kept.append(saved(world))
            return super().put(at, data, **how)

    worker = world.worker(blobs=Looking(world, waiting(gate)), uploads=uploads)
    assert worker(a_task(), StopSignal()) == Ack()
    assert kept[0] == [30]


@pytest.mark.parametrize("inline", [False, True])
def test_training_continues_while_the_store_is_unavailable(
    world: World, uploads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture, inline: bool
) -> None:
    errors = [BlobUnavailable("the store is away")]

    def once() -> None:
        if errors:
            raise errors.pop()

    parts = {} if inline else {"uploads": uploads}
    worker = a_worker(world, blobs=Gated(world, once), **parts)
    assert worker(a_task(), StopSignal()) == Ack()
    assert saved(world) == [60, 75]
    assert "could not store the checkpoint of epoch 10: the store is away" in caplog.text


def test_a_job_whose_checkpoint_is_denied_is_retried_later_and_finally_dead_lettered(
    world: World, uploads: ThreadPoolExecutor
) -> None:
    def reject() -> None:
        raise BlobDenied("not yours")

    worker = a_worker(world, blobs=Gated(world, reject), uploads=uploads)
    outcome = worker(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater)
    assert outcome.reason == "not yours"
    assert world.job().state is JobState.INTERRUPTED
    assert world.job().failures == 0
    assert worker(a_task(), StopSignal(), CONFIG.max_retries) == DeadLetter("not yours")


@pytest.mark.parametrize("timeout", [60.0, math.inf])
def test_shutdown_waits_for_the_checkpoint_being_stored_and_drops_a_newer_one(
    world: World, gate: threading.Event, uploads: ThreadPoolExecutor, timeout: float
) -> None:
    stop = StopSignal()

    def shut_down() -> None:
        stop.request(StopReason.SHUTDOWN, deadline=world.clock.monotonic() + timeout)
        threading.Timer(0.1, gate.set).start()

    worker = a_worker(
        world,
        blobs=Gated(world, waiting(gate)),
        trainer=Watched(world, 40, shut_down),
        uploads=uploads,
    )
    assert worker(a_task(), stop) == Requeue()
    assert saved(world) == [30, 40]


@pytest.mark.parametrize(
    ("step", "said"), [(40, "the previous upload did not end"), (10, "its upload did not end")]
)
def test_shutdown_does_not_wait_for_a_store_that_hangs(
    world: World,
    gate: threading.Event,
    uploads: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    said: str,
) -> None:
    stop, waited = StopSignal(), 0.0

    def noting(storing: list[Future[float]], timeout: float) -> Any:
        nonlocal waited
        waited += timeout
        return wait(storing, timeout)

    def shut_down() -> None:
        # The step takes one second of it.
        stop.request(StopReason.SHUTDOWN, deadline=world.clock.monotonic() + 1.2)

    monkeypatch.setattr(checkpoint_storage, "wait", noting)
    worker = a_worker(
        world,
        blobs=Gated(world, waiting(gate)),
        trainer=Watched(world, step, shut_down),
        uploads=uploads,
    )
    assert worker(a_task(), stop) == Requeue()
    assert 0 < waited < 0.2, "there is time left to hand the job over"
    assert saved(world) == []
    assert f"no checkpoint before the exit: {said} within {waited:.1f} s" in caplog.text
    assert world.job().failures == 0
    (lease,) = world.leases()
    assert json.loads(world.blobs.get(lease).data)["owner"] == "", "the next worker need not wait"
    monkeypatch.undo()
    gate.set()
    assert world.until_settled(a_task()) == Ack()


def test_a_slow_step_does_not_count_as_checkpoint_time(
    world: World, gate: threading.Event, uploads: ThreadPoolExecutor
) -> None:
    stop = StopSignal()

    class Slow(Watched):
        """Its 31st step is slow, and a stop is requested in its 40th."""

        def open(self, plan: Any, resume: bytes | None) -> Any:
            self._before, self._action = 31, self.last_long
            return super().open(plan, resume)

        def last_long(self) -> None:
            gate.set()
            deadline = time.monotonic() + 30
            while not any("checkpoints/" in at.key for at in world.blobs.blobs):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            world.clock.advance(100.0)
            self._before, self._action = 40, self.shut_down

        def shut_down(self) -> None:
            stop.request(StopReason.SHUTDOWN, deadline=world.clock.monotonic() + 30.0)

    worker = a_worker(
        world, blobs=Gated(world, waiting(gate)), trainer=Slow(world, 0, None), uploads=uploads
    )
    assert worker(a_task(), stop) == Requeue()
    assert saved(world) == [30, 40]


def test_a_failing_training_still_records_the_checkpoint_being_stored(
    world: World, gate: threading.Event, uploads: ThreadPoolExecutor
) -> None:
    def fail() -> None:
        threading.Timer(0.1, gate.set).start()
        raise TrainingFailed(Failure(FailureCode.TRAINING_FAILED, "for now", retryable=True))

    worker = a_worker(
        world, blobs=Gated(world, waiting(gate)), trainer=Watched(world, 40, fail), uploads=uploads
    )
    assert isinstance(worker(a_task(), StopSignal()), RetryLater)
    assert saved(world) == [30]
    assert world.job().state is JobState.INTERRUPTED


@pytest.mark.parametrize("error", [BlobUnavailable("away"), BlobDenied("not yours")])
def test_a_failing_checkpoint_does_not_hide_why_training_failed(
    world: World,
    gate: threading.Event,
    uploads: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def arrive() -> None:
        assert gate.wait(30)
        raise error

    def fail() -> None:
        threading.Timer(0.1, gate.set).start()
        raise TrainingFailed(Failure(FailureCode.LOSS_DIVERGED, "too fast"))

    worker = a_worker(
        world, blobs=Gated(world, arrive), trainer=Watched(world, 40, fail), uploads=uploads
    )
    assert worker(a_task(), StopSignal()) == Ack()
    (call,) = world.notifier.final
    assert isinstance(call.payload, Failure)
    assert call.payload.code is FailureCode.LOSS_DIVERGED
    assert [record.levelno for record in caplog.records if "checkpoint" in record.message] == [
        logging.WARNING
    ]


def test_a_worker_that_knows_it_lost_the_job_writes_nothing_more(
    world: World, gate: threading.Event, uploads: ThreadPoolExecutor
) -> None:
    """Even if no other worker has written yet."""
    stop = StopSignal()

    def lost() -> None:
        stop.request(StopReason.LEASE_LOST)
        gate.set()

    worker = a_worker(
        world, blobs=Gated(world, waiting(gate)), trainer=Watched(world, 40, lost), uploads=uploads
    )
    assert isinstance(worker(a_task(), stop), RetryLater)
    assert world.job().checkpoint is None
    (lease,) = world.leases()
    assert json.loads(world.blobs.get(lease).data)["owner"] == "worker-1", "nor releases it"


def test_a_worker_that_lost_the_job_records_nothing(
    world: World, gate: threading.Event, uploads: ThreadPoolExecutor
) -> None:
    """Another worker takes over while the first one's checkpoint is being stored."""

    def taken_over() -> None:
        world.clock.jump(10_000)
        world.blobs.delete(next(at for at in world.leases()))
        assert a_worker(world)(a_task(), StopSignal()) == Ack()
        gate.set()

    worker = a_worker(
        world,
        blobs=Gated(world, waiting(gate)),
        trainer=Watched(world, 40, taken_over),
        uploads=uploads,
    )
    assert isinstance(worker(a_task(), StopSignal()), RetryLater)
    assert world.job().state is JobState.COMPLETED
    assert len(world.notifier.final) == 1


def test_a_checkpoint_of_a_job_taken_over_is_no_failure(
    world: World,
    gate: threading.Event,
    uploads: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The worker notices the takeover while it handles an error of the training."""

    def taken_over() -> None:
        theirs = world.store(worker="theirs").open(world.job())
        theirs.apply(theirs.job.interrupt("its worker was lost", is_failure=True))
        gate.set()
        raise RuntimeError("a defect")

    worker = a_worker(
        world,
        blobs=Gated(world, waiting(gate)),
        trainer=Watched(world, 40, taken_over),
        uploads=uploads,
    )
    outcome = worker(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater)
    assert outcome.elsewhere
    assert saved(world) == []
    assert "the pending checkpoint is lost" not in caplog.text
