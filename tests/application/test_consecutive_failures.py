"""Counting the consecutive failures of a job, and their consequences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from application.ports import BlobDenied, BlobUnavailable, PreconditionFailed, TrainerBroken
from application.settlement import Ack, RetryLater
from application.slots import AdmissionQueue
from application.stop_signal import StopSignal
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.job import JobState
from domain.location import Location
from tests.application.world import CONFIG, KEYS, TASK_ID, Crash, Watched, World, a_task


def test_a_job_that_keeps_crashing_fails(world: World) -> None:
    def crash() -> None:
        raise RuntimeError("a defect")

    for retry in range(CONFIG.max_failures):
        outcome = world.worker(trainer=Watched(world, 2, crash))(a_task(), StopSignal(), retry)
        assert isinstance(outcome, RetryLater)
        assert outcome.reason == "RuntimeError: a defect"
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.job().state is JobState.FAILED
    (call,) = world.notifier.final
    assert isinstance(call.payload, Failure)
    assert call.payload.code is FailureCode.TRAINING_FAILED


@pytest.mark.parametrize("retryable", [True, False])
def test_a_failure_of_the_trainer_is_retried_if_it_says_so(world: World, retryable: bool) -> None:
    def fail() -> None:
        raise TrainingFailed(Failure(FailureCode.GPU_OOM, "too small a card", retryable))

    outcome = world.worker(trainer=Watched(world, 12, fail))(a_task(), StopSignal())
    if retryable:
        assert isinstance(outcome, RetryLater)
        assert outcome.reason == "GPU_OOM: too small a card"
        assert world.job().failures == 1, "else it would be retried for ever"
        assert world.until_settled(a_task()) == Ack()
        assert world.job().state is JobState.COMPLETED
    else:
        assert outcome == Ack()
        assert world.job().failure == Failure(FailureCode.GPU_OOM, "too small a card")
    assert len(world.notifier.final) == 1


def test_crashes_of_a_worker_do_not_count_for_a_job_waiting_for_a_slot(world: World) -> None:
    """Otherwise a job that kills the worker would also fail the waiting ones."""

    class Full(AdmissionQueue):
        @contextmanager
        def hold(self, kind: Any, stop: StopSignal, waiting: Any) -> Iterator[None]:
            waiting()
            raise Crash
            yield

    for _ in range(CONFIG.max_failures + 1):
        with pytest.raises(Crash):
            world.worker(admission=Full())(a_task(), StopSignal())
        world.clock.advance(3 * CONFIG.lease.seconds)
    assert world.job().waits
    assert world.job().failures == 0
    assert world.until_settled(a_task()) == Ack()
    assert world.job().state is JobState.COMPLETED


def test_a_job_that_failed_in_a_batch_trains_alone(world: World) -> None:
    kinds: list[Any] = []

    class Noting(AdmissionQueue):
        def hold(self, kind: Any, stop: StopSignal, waiting: Any) -> Any:
            kinds.append(kind)
            return super().hold(kind, stop, waiting)

    class Crashing(Watched):
        def batch_key(self, _parameters: Any) -> str:
            return "rank 8"

    def crash() -> None:
        raise Crash

    for _ in range(CONFIG.max_shared_failures + 1):
        trainer = Crashing(world, 2, crash)
        with pytest.raises(Crash):
            world.worker(trainer=trainer, admission=Noting(8))(a_task(), StopSignal())
        world.clock.advance(3 * CONFIG.lease.seconds)
    assert kinds == ["rank 8"] * CONFIG.max_shared_failures + [None]


def test_a_lost_device_counts_one_failure_for_one_job(world: World) -> None:
    def break_down() -> None:
        raise TrainerBroken("CUDA error: an illegal memory access was encountered")

    outcome = world.worker(trainer=Watched(world, 12, break_down))(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater)
    assert outcome.device_broken
    assert (world.job().state, world.job().failures) == (JobState.INTERRUPTED, 1)
    assert world.until_settled(a_task()) == Ack()


@pytest.mark.parametrize("written", ["journal.json", "lease.json"])
@pytest.mark.parametrize(
    "error", [BlobUnavailable("503"), BlobDenied("403"), PreconditionFailed("another's by now")]
)
def test_a_worker_with_a_lost_device_ends_even_if_it_cannot_release_the_job(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    written: str,
) -> None:
    plain = world.blobs.put

    def put(at: Location, *content: Any, **options: Any) -> str:
        if at == KEYS.job(TASK_ID, written):
            raise error
        return plain(at, *content, **options)

    def break_down() -> None:
        monkeypatch.setattr(world.blobs, "put", put)
        raise TrainerBroken("CUDA error: the launch timed out and was terminated")

    outcome = world.worker(trainer=Watched(world, 12, break_down))(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater)
    assert outcome.device_broken
