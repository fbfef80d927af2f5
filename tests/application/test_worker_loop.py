"""The worker loop with the real use cases, over a queue in memory."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adapters.common.queue_ports import DeadLetterAction
from adapters.console.job_status import in_words
from adapters.logs.context import LogContext
from adapters.memory import MemoryQueue
from adapters.schemas.task import TaskReader, encode_task
from adapters.spool import SpoolQueue
from application.circuit_breaker import MAX_TASKS, CircuitBreaker
from application.event_bus import EventSink, MessageSettled, TaskReceived, WorkerEvent
from application.job_status import job_status
from application.notify_outcome import MAX_CALL_SECONDS
from application.ports import (
    Blob,
    BlobDenied,
    BlobUnavailable,
    Delivery,
    DeliveryLost,
    NotifierUnavailable,
    QueueUnavailable,
    TrainerBroken,
)
from application.reject_invalid_task import RejectInvalidTask
from application.settlement import Ack, DeadLetter, RetryLater, Settlement
from application.stop_signal import StopReason, StopSignal
from application.worker_loop import UNAVAILABLE_PAUSE, WorkerLoop
from domain.failure import Failure, FailureCode
from domain.job import JobState
from domain.location import Location
from domain.report import BaseFacts
from domain.task import TrainingTask
from tests.application.world import CONFIG, KEYS, TASK_ID, World, a_task

BAD = encode_task(a_task()).replace(b'"epochs": 25', b'"epochs": -1')
"""Names its style, so that the backend is notified."""


def loop_over(
    world: World, queue: Any, events: EventSink = lambda _: None, notifier: Any = None
) -> WorkerLoop:
    reject = RejectInvalidTask(
        store=world.store(worker="loop"),
        notify_outcome=world.notify_outcome(notifier or world.notifier),
        config=CONFIG,
    )
    return WorkerLoop(
        queue=queue,
        parse=TaskReader(None),
        run=world.worker(),
        reject=reject,
        clock=world.clock,
        events=events,
        circuit_breaker=CircuitBreaker(world.clock),
    )


@pytest.fixture
def queue(world: World) -> MemoryQueue:
    return MemoryQueue(world.clock)


def test_a_task_is_run_and_acknowledged(world: World, queue: MemoryQueue) -> None:
    queue.publish(encode_task(a_task()))
    loop_over(world, queue)(StopSignal(), until_empty=True)
    assert world.job().state is JobState.COMPLETED
    assert (queue.waiting, queue.unsettled, queue.dead) == ([], [], [])


def test_observers_get_a_message_when_it_is_received_and_when_it_is_settled(
    world: World, queue: MemoryQueue
) -> None:
    seen: list[tuple[WorkerEvent, int]] = []
    queue.publish(encode_task(a_task()))
    queue.publish(b"garbage")
    loop = loop_over(world, queue, lambda event: seen.append((event, len(queue.unsettled))))
    loop(StopSignal(), until_empty=True)
    assert [type(event) for event, _ in seen] == [TaskReceived, MessageSettled, MessageSettled]
    assert [unsettled for _, unsettled in seen] == [1, 0, 0]
    first, second, third = (event for event, _ in seen)
    assert first == TaskReceived(task_id=TASK_ID, style_id=7)
    assert second == MessageSettled(task_id=TASK_ID, settlement=Ack())
    assert isinstance(third, MessageSettled)
    assert isinstance(third.settlement, DeadLetter)


def test_observers_get_a_message_that_is_rejected_under_the_id_of_its_job(
    world: World, queue: MemoryQueue
) -> None:
    seen: list[WorkerEvent] = []
    queue.publish(BAD)
    loop_over(world, queue, seen.append)(StopSignal(), until_empty=True)
    received, settled = seen
    assert isinstance(received, TaskReceived)
    assert isinstance(settled, MessageSettled)
    assert received.task_id == settled.task_id != TASK_ID
    assert world.events[0].task_id == received.task_id


def test_a_duplicate_of_an_active_task_is_retried_later_and_not_observed_as_a_job(
    world: World, queue: MemoryQueue
) -> None:
    seen: list[WorkerEvent] = []
    loop = loop_over(world, queue, seen.append)

    def run(task: TrainingTask, stop: StopSignal, retries: int) -> Settlement:
        queue.publish(encode_task(task))
        other = StopSignal(stop)

        def end(event: WorkerEvent) -> None:
            seen.append(event)
            other.request(StopReason.SHUTDOWN)

        replace(loop, run=not_again, events=end)(other)
        return Ack()

    def not_again(*_: Any) -> Settlement:
        raise AssertionError("the task is run twice at once")

    queue.publish(encode_task(a_task()))
    replace(loop, run=run)(StopSignal(), until_empty=True)
    duplicate = seen[1]
    assert isinstance(duplicate, MessageSettled)
    assert duplicate.task_id is None
    assert isinstance(duplicate.settlement, RetryLater)
    assert seen[2:] == [MessageSettled(task_id=TASK_ID, settlement=Ack())]
    assert len(queue.waiting) == 1, "it is looked at again later"


def test_a_message_that_waited_for_another_worker_or_a_store_still_has_retries(
    world: World, queue: MemoryQueue
) -> None:
    def rounds(number: int) -> None:
        for _ in range(number):
            loop_over(world, queue)(StopSignal(), until_empty=True)
            world.clock.advance(600)

    def fail(error: Exception) -> Any:
        def get(*_: Any, **_options: Any) -> Blob:
            raise error

        return get

    queue.publish(encode_task(a_task()))
    lease = world.lease("busy")
    lease.acquire(StopSignal())
    with world.clock.every(1.0, lease.renew):
        rounds(2 * CONFIG.max_retries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.blobs, "get", fail(BlobUnavailable("503")))
        rounds(2 * CONFIG.max_retries)
        patch.setattr(world.blobs, "get", fail(BlobDenied("403")))
        rounds(1)
    assert queue.dead == []
    rounds(1)
    assert world.job().state is JobState.COMPLETED


def test_every_log_line_about_a_message_carries_its_task_id(
    world: World, queue: MemoryQueue, caplog: pytest.LogCaptureFixture
) -> None:
    context = LogContext("worker-1")
    caplog.handler.addFilter(context)
    caplog.set_level("INFO")
    world.blobs.put(KEYS.job(TASK_ID, "lease.json"), foreign_lease(world))
    queue.publish(encode_task(a_task()))
    loop_over(world, queue, context)(StopSignal(), until_empty=True)
    caplog.handler.removeFilter(context)
    assert "will be retried" in caplog.text
    assert {record.__dict__["task_id"] for record in caplog.records} == {TASK_ID}


def test_a_rejections_lease_left_by_a_crash_is_deleted_on_redelivery(
    world: World, queue: MemoryQueue
) -> None:
    queue.publish(BAD)
    loop_over(world, queue)(StopSignal(), until_empty=True)
    (journal,) = (at for at in world.blobs.blobs if at.name == "journal.json")
    left = KEYS.job(KEYS.recorded_task(journal) or "", "lease.json")
    world.blobs.put(left, foreign_lease(world))
    world.clock.advance(10.0)
    queue.publish(BAD)
    loop_over(world, queue)(StopSignal(), until_empty=True)
    assert world.leases() == []
    assert len(world.notifier.final) == 1
    assert len(queue.dead) == 2


def foreign_lease(world: World) -> bytes:
    expires = (world.clock.now() + timedelta(seconds=10)).isoformat()
    return json.dumps({"owner": "another", "expires_at": expires, "revision": 1}).encode()


def test_the_same_task_five_times_is_trained_and_announced_once(
    world: World, queue: MemoryQueue
) -> None:
    for _ in range(5):
        queue.publish(encode_task(a_task()))
    loop_over(world, queue)(StopSignal(), until_empty=True)
    assert world.trainer.opened == 1
    assert len(world.notifier.final) == 1


def test_an_invalid_message_is_reported_once_and_dead_lettered_each_time(
    world: World, queue: MemoryQueue
) -> None:
    queue.publish(BAD)
    queue.publish(BAD)
    loop_over(world, queue)(StopSignal(), until_empty=True)
    (call,) = world.notifier.final
    assert isinstance(call.payload, Failure)
    assert call.payload.code is FailureCode.INVALID_TASK
    assert call.payload.message == (
        "The training request is invalid: epochs is -1; give a whole number from 1 to 10,000."
    )
    assert [letter.body for letter in queue.dead] == [BAD, BAD]
    assert "epochs" in queue.dead[0].reason
    assert queue.dead[0].details == {
        "field": "data.parameters.epochs",
        "value": "-1",
        "remedy": "give a whole number from 1 to 10,000",
        "task_id": TASK_ID,
    }


@pytest.mark.parametrize("body", [BAD, BAD.replace(b'"style_id": 7', b'"style_id": "x"')])
def test_an_invalid_message_can_be_looked_up_by_its_task_id(
    world: World, queue: MemoryQueue, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    queue.publish(body)
    loop_over(world, queue)(StopSignal(), until_empty=True)
    status = job_status(TASK_ID, world.store())
    assert status.state == "rejected"
    assert status.backend_notified == (body is BAD)
    assert status.rejection is not None
    assert status.rejection["reason"] == queue.dead[0].reason
    assert TASK_ID in in_words(status)[0]
    assert queue.dead[0].details["task_id"] == TASK_ID
    assert f"invalid message, task {TASK_ID}: " in caplog.text


@pytest.mark.parametrize("body", [b"\x00garbage", b'{"type": "model_training"}'])
def test_garbage_is_dead_lettered_without_a_call(
    world: World, queue: MemoryQueue, body: bytes
) -> None:
    queue.publish(body)
    loop_over(world, queue)(StopSignal(), until_empty=True)
    assert len(queue.dead) == 1
    assert world.notifier.calls == []


def test_an_invalid_message_waits_for_an_unavailable_backend(
    world: World, queue: MemoryQueue
) -> None:
    class Away:
        def failed(self, *args: Any) -> None:
            raise NotifierUnavailable("502")

    queue.publish(BAD)
    loop_over(world, queue, notifier=Away())(StopSignal(), until_empty=True)
    assert queue.waiting == [BAD]
    world.clock.advance(600)
    loop_over(world, queue)(StopSignal(), until_empty=True)
    assert len(world.notifier.final) == 1
    assert len(queue.dead) == 1


def test_an_invalid_message_with_a_damaged_record_is_retried_then_dead_lettered(
    world: World, queue: MemoryQueue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.publish(BAD)
    loop_over(world, queue)(StopSignal(), until_empty=True)
    (record,) = world.blobs.list(KEYS.bucket, "jobs/invalid-")
    world.blobs.put(record, b"{")

    queue.publish(BAD)
    loop_over(world, queue)(StopSignal(), until_empty=True)
    assert queue.waiting == [BAD]
    assert "unexpected error" not in caplog.text
    for _ in range(CONFIG.max_retries):
        world.clock.advance(600)
        loop_over(world, queue)(StopSignal(), until_empty=True)
    assert queue.waiting == []
    (letter,) = queue.dead[1:]
    assert f"{record} is damaged" in letter.reason


def test_a_defect_in_rejecting_a_message_is_logged_and_finally_dead_lettered(
    world: World, queue: MemoryQueue, caplog: pytest.LogCaptureFixture
) -> None:
    class Defective:
        def failed(self, *_: object) -> None:
            raise RuntimeError("a defect")

        def has_arrived(self, *_: object) -> None:
            return None

    queue.publish(BAD)
    loop_over(world, queue, notifier=Defective())(StopSignal(), until_empty=True)
    assert queue.waiting == [BAD], "no defect ends the worker"
    assert "unexpected error" in caplog.text
    for _ in range(CONFIG.max_retries):
        world.clock.advance(600)
        loop_over(world, queue, notifier=Defective())(StopSignal(), until_empty=True)
    assert queue.waiting == []
    (letter,) = queue.dead
    assert "epochs is -1" in letter.reason
    assert "not be notified: after 20 retries: RuntimeError: a defect" in letter.reason


def test_an_invalid_message_is_retried_while_its_record_is_denied(
    world: World, queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(at: Location, **_how: Any) -> Blob:
        raise BlobDenied(f"403 for {at.bucket}")

    monkeypatch.setattr(world.blobs, "get", deny)
    queue.publish(BAD)
    for _ in range(CONFIG.max_retries):
        loop_over(world, queue)(StopSignal(), until_empty=True)
        assert queue.waiting == [BAD]
        world.clock.advance(600)
    loop_over(world, queue)(StopSignal(), until_empty=True)
    (letter,) = queue.dead
    assert "epochs is -1" in letter.reason
    assert "the backend could not be notified: 403 for models" in letter.reason
    assert letter.details["field"] == "data.parameters.epochs"
    assert queue.waiting == []


def test_an_invalid_message_is_requeued_if_there_is_no_time_to_report_it(world: World) -> None:
    stop = StopSignal()

    class Stopping(MemoryQueue):
        def receive(self, timeout: float) -> Delivery | None:
            deadline = world.clock.monotonic() + MAX_CALL_SECONDS / 2
            stop.request(StopReason.SHUTDOWN, deadline=deadline)
            return super().receive(timeout)

    stopping = Stopping(world.clock)
    stopping.publish(BAD)
    loop_over(world, stopping)(stop)
    assert stopping.waiting == [BAD]
    assert (stopping.dead, world.notifier.calls) == ([], [])


def test_a_stop_ends_the_loop_and_requeues_the_message(world: World) -> None:
    stop = StopSignal()

    class Stopping(MemoryQueue):
        def receive(self, timeout: float) -> Delivery | None:
            stop.request(StopReason.SHUTDOWN)
            return super().receive(timeout)

    stopping = Stopping(world.clock)
    stopping.publish(encode_task(a_task()))
    loop_over(world, stopping)(stop)
    assert len(stopping.waiting) == 1
    assert world.job().state is JobState.INTERRUPTED


def test_an_idle_worker_runs_until_a_stop(world: World) -> None:
    stop, looks = StopSignal(), []

    class Empty(MemoryQueue):
        def receive(self, timeout: float) -> Delivery | None:
            looks.append(timeout)
            if len(looks) == 20:
                stop.request(StopReason.SHUTDOWN)
            return super().receive(timeout)

    loop_over(world, Empty(world.clock))(stop)
    assert len(looks) == 20


def test_an_unavailable_broker_is_waited_for_and_logged_once_per_outage(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    refused = QueueUnavailable("connection refused")

    class Flaky(MemoryQueue):
        responses = iter([refused, refused, refused, None, refused])

        def receive(self, timeout: float) -> Delivery | None:
            looks.append(world.clock.monotonic())
            if (error := next(self.responses, None)) is not None:
                raise error
            return super().receive(timeout)

    looks: list[float] = []
    flaky = Flaky(world.clock)
    flaky.publish(encode_task(a_task()))
    caplog.set_level("INFO")
    loop_over(world, flaky)(StopSignal(), until_empty=True)
    assert world.job().state is JobState.COMPLETED
    assert looks[:3] == [0.0, UNAVAILABLE_PAUSE, 2 * UNAVAILABLE_PAUSE]
    assert [line for line in caplog.messages if "queue" in line] == [
        "queue unavailable: connection refused",
        "queue available again",
    ] * 2


@pytest.mark.parametrize("error", [DeliveryLost("gone"), QueueUnavailable("gone")])
def test_a_delivery_lost_during_a_job_is_redelivered_and_only_acknowledged(
    world: World, error: Exception
) -> None:
    class Losing(MemoryQueue):
        lost = False

        def acknowledge(self, delivery: Delivery) -> None:
            if not self.lost:
                self.lost = True
                self.lose_all()
                raise error
            super().acknowledge(delivery)

    losing = Losing(world.clock)
    losing.publish(encode_task(a_task()))
    loop_over(world, losing)(StopSignal(), until_empty=True)
    assert losing.waiting == []
    assert world.trainer.opened == 1
    assert len(world.notifier.final) == 1


def test_a_worker_with_a_lost_device_ends_and_takes_no_other_task(
    world: World, queue: MemoryQueue
) -> None:
    class Broken:
        base = BaseFacts("broken", is_sd15=True)
        native_resolution = 512

        def batch_key(self, _parameters: Any) -> None:
            return None

        def open(self, _plan: Any, _resume: Any) -> Any:
            raise TrainerBroken("CUDA error: unspecified launch failure")

    first = encode_task(a_task())
    second = first.replace(TASK_ID.encode(), b"6" + TASK_ID[1:].encode())
    queue.publish(first)
    queue.publish(second)
    loop = replace(loop_over(world, queue), run=world.worker(trainer=Broken()))
    with pytest.raises(TrainerBroken, match="unspecified launch failure"):
        loop(StopSignal())
    assert queue.unsettled == []
    assert sorted(queue.waiting) == sorted([first, second])
    assert world.job().failures == 1


def test_until_empty_waits_idle_seconds_for_the_next_task(
    world: World, queue: MemoryQueue
) -> None:
    bodies = [encode_task(a_task())]

    def publish_once() -> None:
        while bodies:
            queue.publish(bodies.pop())

    loop = replace(loop_over(world, queue), idle_seconds=60.0)
    with world.clock.every(50.0, publish_once):
        loop(StopSignal(), until_empty=True)
    assert world.job().state is JobState.COMPLETED
    began = world.clock.monotonic()
    loop(StopSignal(), until_empty=True)
    assert world.clock.monotonic() - began == 60


def test_until_empty_waits_for_a_message_still_being_written(world: World, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_bytes(b"no task, and no end of one")
    spool = SpoolQueue(tmp_path, world.clock, lambda: "id")
    loop_over(world, spool)(StopSignal(), until_empty=True)
    assert [
        letter.body for letter in spool.process_dead_letters(lambda _: DeadLetterAction.KEEP)
    ] == [b"no task, and no end of one"]


def test_a_worker_that_is_not_ready_takes_no_task_and_logs_why_once(
    world: World, queue: MemoryQueue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.publish(encode_task(a_task()))
    stop, looks = StopSignal(), []

    def not_ready() -> str | None:
        looks.append(len(queue.waiting))
        return "0.1 GB free" if len(looks) < 4 else None

    def stop_when_idle() -> None:
        if not queue.waiting and not queue.unsettled:
            stop.request(StopReason.SHUTDOWN)

    with world.clock.every(1.0, stop_when_idle):
        replace(loop_over(world, queue), not_ready=not_ready)(stop)
    assert looks[:4] == [1, 1, 1, 1]
    assert world.job().state is JobState.COMPLETED
    assert caplog.text.count("the worker receives no tasks: 0.1 GB free") == 1


def test_a_worker_on_which_every_job_fails_takes_no_more_tasks(
    world: World, queue: MemoryQueue
) -> None:
    tasks = [replace(a_task(), task_id=str(uuid.UUID(int=n))) for n in range(MAX_TASKS + 2)]
    for task in tasks:
        queue.publish(encode_task(task))

    run: list[str] = []

    def broken(task: TrainingTask, *_: Any) -> Settlement:
        run.append(task.task_id)
        return RetryLater(3600.0, "ImportError: a library is gone", unexpected=True)

    loop = replace(loop_over(world, queue), run=broken)
    assert not loop(StopSignal(), until_empty=True), "the others stay on the queue"
    assert len(run) == MAX_TASKS
