"""One task from its message to its settlement: trained, redelivered, stopped, rejected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adapters.memory import MemoryNotifier, MemoryTrainer
from application.job_store import StorageKeys
from application.journal import encode_job
from application.ports import (
    Blob,
    BlobDenied,
    NotifierRejected,
    NotifierUnavailable,
    StyleGone,
)
from application.settlement import Ack, DeadLetter, Requeue, RetryLater
from application.stop_signal import StopReason, StopSignal
from domain.failure import Failure, FailureCode
from domain.job import JobState, TrainingJob
from domain.location import Bucket, Location
from domain.parameters import RequestedParameters
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric
from domain.training_plan import InitialLora
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


def test_a_redelivered_message_changes_nothing(world: World) -> None:
    world.worker()(a_task(), StopSignal())
    before, opened = world.blobs.blobs, world.trainer.opened
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.blobs.blobs == before
    assert world.trainer.opened == opened
    assert len(world.notifier.final) == 1


def test_the_outcome_of_a_redelivered_message_is_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.worker()(a_task(), StopSignal())
    with caplog.at_level("INFO"):
        world.worker()(a_task(), StopSignal())
    assert f"task {TASK_ID}: nothing to do, the job is completed" in caplog.messages


def test_the_parameters_are_resolved_once(world: World) -> None:
    """Even if the number of images, which sets the defaults, has changed."""
    task = replace(a_task(12), requested=RequestedParameters({"batch_size": 4}))
    stop = StopSignal()
    trainer = Watched(world, 40, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=trainer)(task, stop)
    settled = world.job().parameters
    world.blobs.delete(task.images[0])
    assert world.until_settled(task) == Ack()
    assert world.job().state is JobState.COMPLETED
    assert world.job().parameters == settled


@pytest.mark.parametrize(
    ("rank", "alpha", "message"),
    [
        (512, 8.0, "has rank 512: give one whose rank is a whole number from 1 to 256"),
        (8, 0.0, "has alpha 0.0: give one whose alpha is a number above 0 and at most 1024"),
    ],
)
def test_an_initial_lora_that_no_run_can_have_fails_the_task(
    world: World, rank: int, alpha: float, message: str
) -> None:
    task = a_task(network_weights="s3://media/lora.safetensors", dim_from_weights=True)
    worker = world.worker(load_lora=lambda _: InitialLora(b"", rank, alpha))
    assert worker(task, StopSignal()) == Ack()
    (call,) = world.notifier.final
    assert isinstance(call.payload, Failure)
    assert call.payload.code is FailureCode.INVALID_TASK
    assert message in call.payload.message


def test_the_trainer_gets_the_parameters_of_the_task(world: World) -> None:
    plans = []

    class Noting(MemoryTrainer):
        def open(self, plan: Any, resume: bytes | None) -> Any:
            plans.append(plan)
            return super().open(plan, resume)

    task = replace(a_task(), created_at=world.clock.now())
    world.worker(trainer=Noting(world.clock))(task, StopSignal())
    (plan,) = plans
    assert (plan.style_id, plan.tags, plan.created_at) == (7, task.tags, task.created_at)


def test_a_resumed_style_equals_an_uninterrupted_one(world: World) -> None:
    undisturbed = World()
    undisturbed.worker()(a_task(), StopSignal())
    stop = StopSignal()
    trainer = Watched(world, 33, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=trainer)(a_task(), stop)
    world.until_settled(a_task())
    assert world.weights() == undisturbed.weights()


@pytest.mark.parametrize("gone", [False, True])
def test_a_damaged_checkpoint_costs_only_time(world: World, gone: bool) -> None:
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


@pytest.mark.parametrize("state", [JobState.UPLOADING, JobState.NOTIFYING])
def test_the_end_of_the_training_is_recorded_once_the_store_is_back(
    world: World, state: JobState
) -> None:
    def of_the_end(at: Location, data: bytes) -> bool:
        return at == KEYS.job(TASK_ID, "journal.json") and f'"{state}"'.encode() in data

    blobs = AwayAfter(world, of_the_end, seconds=30.0)
    assert world.worker(blobs=blobs)(a_task(), StopSignal()) == Ack()
    assert world.job().attempt == 1


def test_an_unreadable_journal_is_dead_lettered(world: World) -> None:
    world.blobs.put(KEYS.job(TASK_ID, "journal.json"), b"{}")
    assert isinstance(world.worker()(a_task(), StopSignal(), 0), RetryLater)
    outcome = world.worker()(a_task(), StopSignal(), CONFIG.max_retries)
    assert isinstance(outcome, DeadLetter)
    assert (
        f"{KEYS.job(TASK_ID, 'journal.json')} is damaged (KeyError: 'revision')" in outcome.reason
    )


@pytest.mark.parametrize(
    "forged", [Location("elsewhere", "models/style_7.safetensors"), Location("models", "x")]
)
def test_weights_recorded_at_another_location_are_not_announced(
    world: World, forged: Location
) -> None:
    job = TrainingJob(
        task_id=TASK_ID,
        style_id=7,
        state=JobState.NOTIFYING,
        metric=TrainingMetric(0.1, 4, 80),
        artifact=Artifact(forged, "00ff", 12),
    )
    record = {"revision": 1, "writer": "w", "job": encode_job(job)}
    world.blobs.put(KEYS.job(TASK_ID, "journal.json"), json.dumps(record).encode())
    outcome = world.worker()(a_task(), StopSignal(), CONFIG.max_retries)
    assert isinstance(outcome, DeadLetter)
    assert f"is damaged (ValueError: weights at {forged})" in outcome.reason
    assert world.notifier.final == []


def test_a_job_started_by_a_newer_worker_waits_for_one(world: World) -> None:
    stop = StopSignal()
    world.worker(trainer=Watched(world, 40, lambda: stop.request(StopReason.SHUTDOWN)))(
        a_task(), stop
    )
    at = KEYS.job(TASK_ID, "journal.json")
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


def test_a_denied_journal_bucket_loses_no_task(world: World) -> None:
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


def test_a_call_rejected_by_the_backend_is_dead_lettered_and_can_be_replayed(
    world: World,
) -> None:
    class Rejecting:
        def __getattr__(self, name: str) -> Any:
            def reject(*args: Any) -> None:
                raise NotifierRejected("404: the style is gone")

            return reject

    outcome = world.worker(notifier=Rejecting())(a_task(), StopSignal())
    assert isinstance(outcome, DeadLetter)
    assert "404" in outcome.reason
    assert world.job().state is JobState.NOTIFYING
    assert world.weights()
    assert KEYS.report(TASK_ID, "report.html") in world.blobs.blobs

    opened = world.trainer.opened
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.trainer.opened == opened
    assert world.job().attempt == 1
    assert len(world.notifier.final) == 1


def test_an_unavailable_backend_is_retried_with_growing_delays(world: World) -> None:
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


class Deleted(MemoryNotifier):
    """A backend that responds 404 to progress calls of a style: to all, or to some."""

    def __init__(self, known: Callable[[int], bool] = lambda _: False) -> None:
        super().__init__()
        self.asked = 0
        self._known = known

    def progress(self, style_id: int, progress: Progress) -> None:
        self.asked += 1
        if not self._known(self.asked):
            raise StyleGone("404")


def test_a_deleted_style_stops_its_job_without_a_completion_call(world: World) -> None:
    backend = Deleted()
    outcome = world.worker(notifier=backend)(a_task(epochs=100), StopSignal())
    assert isinstance(outcome, DeadLetter)
    assert "style 7 is gone" in outcome.reason
    assert (backend.asked, backend.final) == (3, [])
    assert world.job().state is JobState.INTERRUPTED
    assert world.until_settled(a_task(epochs=100)) == Ack(), "it can be replayed"


def test_a_style_that_is_found_again_is_not_deleted(world: World) -> None:
    backend = Deleted(known=lambda call: call % 3 == 0)
    assert world.worker(notifier=backend)(a_task(epochs=100), StopSignal()) == Ack()
    assert backend.asked > 6


def test_weights_in_a_folder_are_stored_under_the_task_with_the_config_last(
    world: World,
) -> None:
    written: list[str] = []

    class Noting(AwayAfter):
        def put(self, at: Location, data: bytes, **options: Any) -> str:
            written.append(at.key)
            return world.blobs.put(at, data, **options)

    keys = StorageKeys(Bucket("models"), models=Bucket("weights", "gs"))
    config = replace(CONFIG, weights_in_folder=True)
    blobs = Noting(world, lambda *_: False, 0.0)
    assert world.worker(blobs=blobs, keys=keys, config=config)(a_task(), StopSignal()) == Ack()
    folder = f"models/style-7/{TASK_ID}"
    assert [key for key in written if key.startswith("models/")] == [
        f"{folder}/style_7.safetensors",
        f"{folder}/adapter_model.safetensors",
        f"{folder}/adapter_config.json",
    ]
    artifact = world.job().artifact
    assert artifact is not None
    assert str(artifact.location) == f"gs://weights/{folder}/adapter_model.safetensors"
    stored = world.blobs.get(artifact.location).data
    assert (hashlib.sha256(stored).hexdigest(), len(stored)) == (artifact.sha256, artifact.size)
