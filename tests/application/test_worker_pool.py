"""Concurrent worker loops: several active jobs, and one end for all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adapters.clock import SystemClock
from adapters.memory import MemoryQueue, MemoryTrainer
from adapters.schemas.task import TaskReader, encode_task
from application.circuit_breaker import CircuitBreaker
from application.job_store import StorageKeys
from application.ports import Delivery
from application.run_training import RunTraining
from application.settlement import Ack, Settlement
from application.slots import AdmissionQueue
from application.stop_signal import StopReason, StopSignal
from application.worker_loop import RECEIVE_SECONDS, WorkerLoop, WorkerPool
from domain.location import Bucket
from domain.task import TrainingTask
from tests.application.world import CONFIG, World, a_task
from tests.services.waiting import eventually

LONG = 30.0
"""Timeout in seconds, longer than any test takes."""


def reject(*_: Any) -> Settlement:
    raise AssertionError("every message here is a task")


def worker_pool_of(
    count: int, queue: MemoryQueue, run: Callable[[int], Callable[..., Settlement]]
) -> WorkerPool:
    clock = SystemClock()
    circuit_breaker = CircuitBreaker(clock)
    active: dict[str, Delivery] = {}
    return WorkerPool(
        [
            WorkerLoop(
                queue=queue,
                parse=TaskReader(None),
                run=run(slot),
                reject=reject,
                clock=clock,
                events=lambda _event: None,
                circuit_breaker=circuit_breaker,
                active=active,
            )
            for slot in range(count)
        ]
    )


class CountingQueue(MemoryQueue):
    """Counts the receives without a message, which end soon once ``started`` is set."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.empty, self.started = 0, threading.Event()

    def receive(self, _timeout: float) -> Delivery | None:
        delivery = super().receive(0.01)
        if delivery is None:
            self.started.wait(LONG)
            self.empty += 1
        return delivery


def tasks(count: int) -> list[TrainingTask]:
    return [
        replace(a_task(), task_id=f"00000000-0000-4000-8000-{n:012d}", style_id=n)
        for n in range(1, count + 1)
    ]


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue(SystemClock())


def test_as_many_jobs_as_loops_are_active_at_a_time(queue: MemoryQueue) -> None:
    for task in tasks(4):
        queue.publish(encode_task(task))
    both = threading.Barrier(2)

    def run(_task: TrainingTask, _stop: StopSignal, _retries: int) -> Settlement:
        both.wait(LONG)
        return Ack()

    worker_pool_of(2, queue, lambda _: run)(StopSignal(), until_empty=True)
    assert (queue.waiting, queue.unsettled) == ([], [])


def test_an_idle_loop_takes_tasks_as_long_as_another_is_busy() -> None:
    queue, both = CountingQueue(), threading.Barrier(2)
    first, second = (encode_task(task) for task in tasks(2))
    queue.publish(first)

    def run(task: TrainingTask, _stop: StopSignal, _retries: int) -> Settlement:
        if task.style_id == 1:
            queue.started.set()
            eventually(lambda: queue.empty > 2 * WorkerLoop.idle_seconds / RECEIVE_SECONDS)
            queue.publish(second)
        both.wait(LONG)
        return Ack()

    worker_pool_of(2, queue, lambda _: run)(StopSignal(), until_empty=True)
    assert (queue.waiting, queue.unsettled) == ([], [])


def test_jobs_of_one_batch_key_train_together_and_each_is_announced_once(
    queue: MemoryQueue,
) -> None:
    world, clock = World(), SystemClock()
    trainer, admission = MemoryTrainer(clock, step_seconds=0.002, slots=3), AdmissionQueue(3)
    for task in tasks(5):
        queue.publish(encode_task(task))

    def run(slot: int) -> RunTraining:
        return world.worker(
            clock=clock,
            trainer=trainer,
            admission=admission,
            worker=f"worker-{slot}",
            keys=StorageKeys(Bucket("models")),
            config=replace(CONFIG, cancel_poll=1.0),
        )

    worker_pool_of(3, queue, run)(StopSignal(), until_empty=True)
    assert (queue.waiting, queue.unsettled, queue.dead) == ([], [], [])
    assert sorted(call.style_id for call in world.notifier.final) == [1, 2, 3, 4, 5]
    assert trainer.max_at_once == 3


def test_a_stop_ends_every_loop(queue: MemoryQueue) -> None:
    for task in tasks(2):
        queue.publish(encode_task(task))
    stop, all_started = StopSignal(), threading.Barrier(3)

    def run(_task: TrainingTask, own: StopSignal, _retries: int) -> Settlement:
        all_started.wait(LONG)
        while own.reason is None:
            pass
        return Ack()

    working = threading.Thread(target=worker_pool_of(2, queue, lambda _: run), args=(stop,))
    working.start()
    all_started.wait(LONG)
    stop.request(StopReason.SHUTDOWN)
    working.join(LONG)
    assert not working.is_alive()


def test_a_single_loop_runs_in_the_callers_thread() -> None:
    calls = []

    def loop(_stop: StopSignal, *, until_empty: bool) -> bool:
        calls.append((threading.current_thread(), until_empty))
        return True

    loops: list[Any] = [loop]
    WorkerPool(loops)(StopSignal(), until_empty=True)
    assert calls == [(threading.current_thread(), True)]


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_in_one_loop_ends_all_and_is_raised(queue: MemoryQueue, count: int) -> None:
    queue.publish(encode_task(a_task()))

    def run(_task: TrainingTask, _stop: StopSignal, _retries: int) -> Settlement:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        worker_pool_of(count, queue, lambda _: run)(StopSignal())
