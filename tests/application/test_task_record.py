"""One task id, one job: a message with a known id must have the same content."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from application.reject_invalid_task import RejectInvalidTask
from application.settlement import Ack, DeadLetter, Requeue, RetryLater, Settlement
from application.stop_signal import StopReason, StopSignal
from domain.failure import Failure, FailureCode
from domain.job import JobState
from domain.location import Location
from domain.parameters import RequestedParameters
from domain.task import InvalidTask, TrainingTask
from tests.application.world import CONFIG, KEYS, TASK_ID, Watched, World, a_task

TASK = a_task()
OTHERS = {
    "style_id": replace(TASK, style_id=8),
    "images": replace(TASK, images=TASK.images[1:]),
    "tags": replace(TASK, tags=("oil",)),
    "parameters": replace(TASK, requested=RequestedParameters({"epochs": 3})),
}


@pytest.mark.parametrize("field", OTHERS)
def test_a_message_that_differs_is_dead_lettered_with_the_difference(
    world: World, field: str
) -> None:
    assert world.worker()(TASK, StopSignal()) == Ack()
    outcome = world.worker()(OTHERS[field], StopSignal())
    assert isinstance(outcome, DeadLetter)
    assert outcome.details["field"] == field
    assert f"{field} on record" in outcome.details
    assert len(world.notifier.final) == 1
    assert KEYS.weights(8) not in world.blobs.blobs


@pytest.mark.parametrize("first", [TASK, OTHERS["style_id"]], ids=["original", "deviating"])
def test_the_first_of_two_messages_with_one_id_wins(world: World, first: TrainingTask) -> None:
    """Also while its job is being trained."""
    second = OTHERS["style_id"] if first is TASK else TASK
    outcomes: list[object] = []
    trainer = Watched(world, 40, lambda: outcomes.append(world.worker()(second, StopSignal())))
    assert world.worker(trainer=trainer)(first, StopSignal()) == Ack()
    assert [type(outcome) for outcome in outcomes] == [DeadLetter]
    (call,) = world.notifier.final
    assert call.style_id == first.style_id
    assert KEYS.weights(first.style_id) in world.blobs.blobs
    assert KEYS.weights(second.style_id) not in world.blobs.blobs


def test_a_message_that_repeats_the_request_is_the_same_task(world: World) -> None:
    stop = StopSignal()
    trainer = Watched(world, 40, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=trainer)(TASK, stop)
    assert world.until_settled(replace(TASK)) == Ack()
    assert world.job().state is JobState.COMPLETED


def test_a_record_of_version_0_1_has_its_style_id(world: World) -> None:
    world.worker()(TASK, StopSignal())
    world.blobs.delete(KEYS.job(TASK_ID, "task.json"))
    assert isinstance(world.worker()(OTHERS["style_id"], StopSignal()), DeadLetter)
    assert world.worker()(TASK, StopSignal()) == Ack()


def reject(world: World, style_id: int = 7) -> Settlement:
    """Reject the task's message, as a worker with a lower limit does."""
    error = InvalidTask("data.parameters.resolution", "1024", "give at most 768 (MAX_RESOLUTION)")
    error.style_id, error.task_id = style_id, TASK_ID
    rejecting = RejectInvalidTask(
        store=world.store(worker="strict"),
        notify_outcome=world.notify_outcome(world.notifier),
        config=CONFIG,
    )
    return rejecting(b"{}", error, StopSignal())


def interrupted(world: World) -> None:
    stop = StopSignal()
    trainer = Watched(world, 40, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=trainer)(TASK, stop)
    assert world.job().state is JobState.INTERRUPTED


def test_an_invalid_message_with_the_id_of_a_completed_job_makes_no_call(world: World) -> None:
    world.worker()(TASK, StopSignal())
    assert isinstance(reject(world), DeadLetter)
    assert [call.kind for call in world.notifier.final] == ["completed"]


def test_a_job_fails_if_its_next_worker_rejects_its_message(world: World) -> None:
    interrupted(world)
    assert isinstance(reject(world), DeadLetter)
    assert isinstance(reject(world), DeadLetter)
    assert world.job().state is JobState.FAILED
    (call,) = world.notifier.final
    assert (call.kind, call.task_id) == ("failed", TASK_ID)
    assert isinstance(call.payload, Failure)
    assert call.payload.code is FailureCode.INVALID_TASK
    assert world.leases() == []
    stored = [at.key for at in world.blobs.blobs if "/checkpoints/" in at.key]
    assert len(stored) == CONFIG.keep_checkpoints


def test_a_style_is_announced_if_the_next_worker_rejects_its_message(world: World) -> None:
    stop = StopSignal()

    class Stopping:
        def __getattr__(self, name: str) -> Any:
            return getattr(world.blobs, name)

        def put(self, at: Location, *content: Any, **options: Any) -> str:
            if at == KEYS.weights(7):
                stop.request(StopReason.SHUTDOWN, deadline=world.clock.monotonic())
            return world.blobs.put(at, *content, **options)

    assert world.worker(blobs=Stopping())(TASK, stop) == Requeue()
    assert world.job().state is JobState.NOTIFYING
    assert isinstance(reject(world), DeadLetter)
    assert [call.kind for call in world.notifier.final] == ["completed"]


def test_a_rejected_message_waits_for_the_worker_that_runs_its_job(world: World) -> None:
    outcomes: list[Settlement] = []
    trainer = Watched(world, 40, lambda: outcomes.append(reject(world)))
    assert world.worker(trainer=trainer)(TASK, StopSignal()) == Ack()
    (outcome,) = outcomes
    assert isinstance(outcome, RetryLater)
    assert outcome.elsewhere
    assert [call.kind for call in world.notifier.final] == ["completed"]


def test_an_invalid_message_of_another_style_leaves_a_job_alone(world: World) -> None:
    interrupted(world)
    assert isinstance(reject(world, style_id=8), DeadLetter)
    assert world.job().state is JobState.INTERRUPTED
    assert world.notifier.final == []


def test_a_recorded_request_without_fields_is_a_different_one(world: World) -> None:
    world.blobs.put(KEYS.job(TASK_ID, "task.json"), b"{}")
    outcome = world.worker()(TASK, StopSignal())
    assert isinstance(outcome, DeadLetter)
    assert outcome.details["field"] == "style_id, images, tags, parameters"
