"""The way of one task from its message to its settlement: alone, again, stopped, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from adapters.memory import MemoryTrainer
from application.journal import encode_job
from application.ports import Blob, BlobDenied, NotifierRefused, NotifierUnavailable
from application.settlement import Ack, DeadLetter, Requeue, RetryLater
from application.stop_signal import StopReason, StopSignal
from domain.job import JobState, TrainingJob
from domain.location import Location
from domain.parameters import RequestedParameters
from domain.results import Artifact, TrainingMetric
from tests.application.world import CONFIG, KEYS, TASK_ID, AwayAfter, Watched, World, a_task


def test_a_task_becomes_a_style_that_is_announced_once(world: World) -> None:
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.job().state is JobState.COMPLETED
    (call,) = world.notifier.final
    assert (call.kind, call.style_id) == ("completed", 7)
    assert call.task_id == TASK_ID
    assert isinstance(call.payload, tuple)
    artifact, metric = call.payload
    assert artifact.location == Location("models", "models/style_7.safetensors")
    assert artifact.size == len(world.weights())
    assert (metric.epochs, metric.steps) == (25, 75)
    assert world.leases() == []


def test_a_message_that_comes_again_changes_nothing(world: World) -> None:
    world.worker()(a_task(), StopSignal())
    before, opened = world.blobs.blobs, world.trainer.opened
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.blobs.blobs == before
    assert world.trainer.opened == opened
    assert len(world.notifier.final) == 1


def test_the_log_says_what_became_of_a_message_that_came_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.worker()(a_task(), StopSignal())
    with caplog.at_level("INFO"):
        world.worker()(a_task(), StopSignal())
    assert f"task {TASK_ID}: nothing to do, the job is completed" in caplog.messages


def test_the_parameters_are_settled_once(world: World) -> None:
    """Though another count of images would have other defaults by now."""
    task = replace(a_task(12), requested=RequestedParameters({"batch_size": 4}))
    stop = StopSignal()
    trainer = Watched(world, 40, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=trainer)(task, stop)
    settled = world.job().parameters
    world.blobs.delete(task.images[0])
    assert world.until_settled(task) == Ack()
    assert world.job().state is JobState.COMPLETED
    assert world.job().parameters == settled


def test_the_trainer_is_told_what_the_task_says(world: World) -> None:
    plans = []

    class Noting(MemoryTrainer):
        def open(self, plan: Any, resume: bytes | None) -> Any:
            plans.append(plan)
            return super().open(plan, resume)

    task = replace(a_task(), created_at=world.clock.now())
    world.worker(trainer=Noting(world.clock))(task, StopSignal())
    (plan,) = plans
    assert (plan.style_id, plan.tags, plan.created_at) == (7, task.tags, task.created_at)


def test_a_resumed_style_equals_an_undisturbed_one(world: World) -> None:
    undisturbed = World()
    undisturbed.worker()(a_task(), StopSignal())
    stop = StopSignal()
    trainer = Watched(world, 33, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=trainer)(a_task(), stop)
    world.until_settled(a_task())
    assert world.weights() == undisturbed.weights()


@pytest.mark.parametrize("gone", [False, True])
def test_a_damaged_checkpoint_costs_time_and_nothing_else(world: World, gone: bool) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    stop = StopSignal()
    trainer = Watched(world, 40, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=trainer)(a_task(), stop)
    checkpoint = world.job().checkpoint
    assert checkpoint is not None
    if gone:
        world.blobs.delete(checkpoint.location)
    else:
        world.blobs.put(checkpoint.location, b"damaged")
    world.worker(trainer=Watched(world, 2, fail))(a_task(), StopSignal())
    assert world.job().checkpoint is None
    assert world.worker()(a_task(), StopSignal()) == Ack()
    undisturbed = World()
    undisturbed.worker()(a_task(), StopSignal())
    assert world.weights() == undisturbed.weights()


def test_a_shutdown_before_the_images_are_fetched_hands_the_job_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, plain = StopSignal(), world.blobs.get
    stop.request(StopReason.SHUTDOWN)

    def get(at: Location, **options: Any) -> Blob:
        assert at.bucket != "media"
        return plain(at, **options)

    with monkeypatch.context() as patched:
        patched.setattr(world.blobs, "get", get)
        assert world.worker()(a_task(), stop) == Requeue()
    assert world.job().state is JobState.INTERRUPTED
    assert world.until_settled(a_task()) == Ack()


@pytest.mark.parametrize("state", [JobState.UPLOADING, JobState.ANNOUNCING])
def test_the_end_of_the_training_is_recorded_once_the_store_is_back(
    world: World, state: JobState
) -> None:
    def of_the_end(at: Location, data: bytes) -> bool:
        return at == KEYS.journal(TASK_ID) and f'"{state}"'.encode() in data

    blobs = AwayAfter(world, of_the_end, seconds=30.0)
    assert world.worker(blobs=blobs)(a_task(), StopSignal()) == Ack()
    assert world.job().attempt == 1


def test_a_journal_that_cannot_be_read_becomes_a_persons_matter(world: World) -> None:
    world.blobs.put(KEYS.journal(TASK_ID), b"{}")
    assert isinstance(world.worker()(a_task(), StopSignal(), 0), RetryLater)
    outcome = world.worker()(a_task(), StopSignal(), CONFIG.max_retries)
    assert isinstance(outcome, DeadLetter)
    assert f"{KEYS.journal(TASK_ID)} is damaged (KeyError: 'revision')" in outcome.reason


@pytest.mark.parametrize(
    "forged", [Location("elsewhere", "models/style_7.safetensors"), Location("models", "x")]
)
def test_weights_that_the_record_places_elsewhere_are_not_announced(
    world: World, forged: Location
) -> None:
    job = TrainingJob(
        task_id=TASK_ID,
        style_id=7,
        state=JobState.ANNOUNCING,
        metric=TrainingMetric(0.1, 4, 80),
        artifact=Artifact(forged, "00ff", 12),
    )
    record = {"revision": 1, "writer": "w", "job": encode_job(job)}
    world.blobs.put(KEYS.journal(TASK_ID), json.dumps(record).encode())
    outcome = world.worker()(a_task(), StopSignal(), CONFIG.max_retries)
    assert isinstance(outcome, DeadLetter)
    assert f"is damaged (ValueError: weights at {forged})" in outcome.reason
    assert world.notifier.final == []


def test_a_job_that_a_newer_worker_has_begun_waits_for_one_however_long(world: World) -> None:
    stop = StopSignal()
    world.worker(trainer=Watched(world, 40, lambda: stop.request(StopReason.SHUTDOWN)))(
        a_task(), stop
    )
    at = KEYS.journal(TASK_ID)
    left = world.blobs.get(at).data
    newer = json.loads(left)
    newer["job"]["parameters"]["invented_later"] = True
    world.blobs.put(at, json.dumps(newer).encode())
    outcome = world.worker()(a_task(), StopSignal(), 100 * CONFIG.max_retries)
    assert isinstance(outcome, RetryLater)
    assert "invented_later" in outcome.reason
    world.blobs.put(at, left)
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.job().failures == 0


def test_a_bucket_of_journals_that_is_denied_buries_no_task(world: World) -> None:
    class Denying:
        def __getattr__(self, name: str) -> Any:
            def deny(*_arguments: Any, **_options: Any) -> Any:
                raise BlobDenied("403 for models: let the worker write it")

            return deny

    outcome = world.worker(blobs=Denying())(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater)
    assert "403 for models" in outcome.reason
    outcome = world.worker(blobs=Denying())(a_task(), StopSignal(), CONFIG.max_retries)
    assert outcome == DeadLetter("403 for models: let the worker write it")
    assert world.until_settled(a_task()) == Ack()


def test_a_refusal_of_the_backend_goes_to_the_dead_letters_and_can_be_replayed(
    world: World,
) -> None:
    class Refusing:
        def __getattr__(self, name: str) -> Any:
            def refuse(*args: Any) -> None:
                raise NotifierRefused("404: the style is gone")

            return refuse

    outcome = world.worker(notifier=Refusing())(a_task(), StopSignal())
    assert isinstance(outcome, DeadLetter)
    assert "404" in outcome.reason
    assert world.job().state is JobState.ANNOUNCING
    assert world.weights()

    opened = world.trainer.opened
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.trainer.opened == opened, "a replay announces and does not train"
    assert len(world.notifier.final) == 1


def test_a_backend_that_is_away_is_tried_again_with_growing_pauses(world: World) -> None:
    class Away:
        def __getattr__(self, name: str) -> Any:
            def fail(*args: Any) -> None:
                raise NotifierUnavailable("502", retry_after=90.0 if name == "completed" else None)

            return fail

    first = world.worker(notifier=Away())(a_task(), StopSignal(), 0)
    later = world.worker(notifier=Away())(a_task(), StopSignal(), 6)
    assert isinstance(first, RetryLater)
    assert isinstance(later, RetryLater)
    assert first.delay == 90.0
    assert later.delay > first.delay
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert len(world.notifier.final) == 1
