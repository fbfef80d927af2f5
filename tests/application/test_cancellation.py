"""Cancelled jobs."""

from __future__ import annotations

from typing import Any

import pytest

from application.ports import Blob, BlobDenied, BlobUnavailable
from application.settlement import Ack
from application.stop_signal import StopSignal
from domain.failure import Failure, FailureCode
from domain.job import JobState
from domain.location import Location
from tests.application.world import CONFIG, KEYS, TASK_ID, Watched, World, a_task


def test_a_cancelled_job_stops_at_the_next_check_and_the_backend_is_notified(world: World) -> None:
    def cancel() -> None:
        world.blobs.put(KEYS.job(TASK_ID, "cancel.json"), b"{}")

    trainer = Watched(world, 20, cancel)
    assert world.worker(trainer=trainer)(a_task(), StopSignal()) == Ack()
    job = world.job()
    assert job.state is JobState.CANCELLED
    assert job.progress is not None
    assert job.progress.current_step <= 20 + CONFIG.cancel_poll
    (call,) = world.notifier.final
    assert isinstance(call.payload, Failure)
    assert call.payload.code is FailureCode.CANCELLED


def test_a_job_cancelled_while_queued_is_not_started(world: World) -> None:
    world.blobs.put(KEYS.job(TASK_ID, "cancel.json"), b"{}")
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.job().state is JobState.CANCELLED
    assert world.trainer.opened == 0


@pytest.mark.parametrize("error", [BlobUnavailable("503"), BlobDenied("403")])
def test_an_unreadable_cancellation_does_not_stop_the_job(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """S3 denies reading a missing key to a user without permission to list the bucket."""
    plain = world.blobs.get

    def get(at: Location, **options: Any) -> Blob:
        if at == KEYS.job(TASK_ID, "cancel.json"):
            raise error
        return plain(at, **options)

    monkeypatch.setattr(world.blobs, "get", get)
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.job().state is JobState.COMPLETED
