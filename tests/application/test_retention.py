"""Which checkpoints of a finished job are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.memory import MemorySession
from application.ports import BlobDenied, BlobUnavailable
from application.settlement import Ack
from application.stop_signal import StopReason, StopSignal
from domain.location import Location
from domain.loss_curve import EpochRecord
from tests.application.world import CONFIG, Watched, World, a_task, stored_epochs


@pytest.mark.parametrize(("keep", "left"), [(0, []), (1, [25]), (2, [20, 25]), (7, [10, 20, 25])])
def test_a_finished_job_keeps_the_configured_checkpoints(
    world: World, keep: int, left: list[int]
) -> None:
    config = replace(CONFIG, keep_checkpoints=keep)
    world.worker(config=config)(a_task(), StopSignal())
    assert stored_epochs(world) == left


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tenth epoch is measured, and epoch 20 is the best."""
    plain = MemorySession.history.fget  # type: ignore[attr-defined]  # a property's own

    def history(session: MemorySession) -> list[EpochRecord]:
        return [
            replace(record, evaluation_loss=abs(record.epoch - 20) + 0.1)
            if record.epoch % 10 == 0 or record.epoch == 25
            else record
            for record in plain(session)
        ]

    monkeypatch.setattr(MemorySession, "history", property(history))


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(("keep", "left"), [(0, []), (1, [20, 25]), (2, [20, 25])])
def test_the_best_epochs_checkpoint_is_kept_beside_the_latest(
    world: World, keep: int, left: list[int]
) -> None:
    world.worker(config=replace(CONFIG, keep_checkpoints=keep))(a_task(), StopSignal())
    assert stored_epochs(world) == left
    assert stored_epochs(world, "styles") == left
    metric = world.job().metric
    assert metric is not None
    assert metric.best_epoch == 20


@pytest.mark.usefixtures("measured")
def test_a_best_epoch_without_a_checkpoint_changes_nothing(world: World) -> None:
    config = replace(CONFIG, keep_checkpoints=1, checkpoint_every=15)
    world.worker(config=config)(a_task(), StopSignal())
    assert stored_epochs(world) == [25]


@pytest.mark.usefixtures("measured")
def test_a_redelivery_reads_the_best_epoch_from_the_journal(world: World) -> None:
    world.worker(config=replace(CONFIG, keep_checkpoints=None))(a_task(), StopSignal())
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert stored_epochs(world) == [20, 25]


def test_cleanup_missed_by_a_crash_is_done_on_redelivery(world: World) -> None:
    world.worker(config=replace(CONFIG, keep_checkpoints=None))(a_task(), StopSignal())
    assert stored_epochs(world) == [10, 20, 25]
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert stored_epochs(world) == [25]


@pytest.mark.parametrize("error", [BlobUnavailable("503"), BlobDenied("403")])
def test_old_checkpoints_that_cannot_be_listed_are_kept(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def reject(_bucket: str, _prefix: str) -> list[Location]:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(world.blobs, "list", reject)
        assert world.worker()(a_task(), StopSignal()) == Ack()
    assert stored_epochs(world) == [10, 20, 25]


def test_an_unfinished_job_keeps_every_checkpoint(world: World) -> None:
    stop = StopSignal()
    trainer = Watched(world, 70, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=trainer)(a_task(), stop)
    assert stored_epochs(world) == [10, 20, 23]
    assert stored_epochs(world, "styles") == [10, 20], "there is no time for one in a shutdown"
