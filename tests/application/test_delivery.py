"""Which epoch is delivered, also when none is better than the base model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from adapters.memory import MemorySession
from application.settlement import Ack
from application.stop_signal import StopReason, StopSignal
from domain.events import SecondTryBegan
from domain.failure import Failure, FailureCode
from domain.job import JobState
from domain.loss_curve import EpochRecord, epochs_to_deliver, is_worse
from domain.parameters import DeliveredEpoch
from domain.results import TrainingMetric
from tests.application.world import CONFIG, KEYS, TASK_ID, Watched, World, a_task

NOISE = (-0.3, 0.1, 0.0, 0.2)
"""Deviations of the single predictions from their mean, common to all measurements."""


def record(epoch: int, loss: float | None, *own: float) -> EpochRecord:
    """An epoch measured with this loss; ``own`` is its own noise."""
    if loss is None:
        return EpochRecord(epoch, 0.5, 1e-4)
    noise = own or (0.0,) * len(NOISE)
    losses = tuple(loss + common + more for common, more in zip(NOISE, noise, strict=True))
    mean = sum(losses) / len(losses)
    return EpochRecord(epoch, 0.5, 1e-4, evaluation_loss=mean, prediction_losses=losses)


BEFORE = record(0, 1.0)


def chosen(*losses: float | None, deliver: DeliveredEpoch = DeliveredEpoch.AUTO) -> list[int]:
    history = [record(epoch, loss) for epoch, loss in enumerate(losses, start=1)]
    return [epoch.epoch for epoch in epochs_to_deliver(history, BEFORE, deliver)]


def test_only_a_difference_above_the_noise_is_worse() -> None:
    assert is_worse(record(2, 0.51), record(1, 0.50)), "all predictions differ alike"
    assert not is_worse(record(2, 0.51, 0.1, -0.1, 0.1, -0.1), record(1, 0.50))
    assert not is_worse(record(1, 0.50), record(2, 0.51))
    assert not is_worse(record(1, 0.50), record(2, 0.50))
    assert not is_worse(record(2, 0.51), record(1, None))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_worse_than_a_finite_one(broken: float) -> None:
    one = record(2, 0.5, broken, 0.0, 0.0, 0.0)
    assert is_worse(one, record(1, 0.5))
    assert not is_worse(record(1, 0.5), one)
    assert not is_worse(one, one)
    assert chosen(0.9, broken) == [1]
    assert chosen(broken, 0.9) == [2]
    both_broken = [record(1, broken)], record(0, broken)
    assert epochs_to_deliver(*both_broken, DeliveredEpoch.AUTO) == []
    assert epochs_to_deliver([record(1, broken)], None, DeliveredEpoch.AUTO) == []


def test_the_last_epoch_is_delivered_unless_it_is_worse() -> None:
    assert chosen(0.9, 0.5, 0.4) == [3]
    assert chosen(0.9, 0.4, 0.4) == [3]
    assert chosen(None, None) == [2], "nothing is known of either"
    assert chosen(0.3, None, 0.5, 0.4) == [1, 4], "and the last where no checkpoint is left"
    assert chosen(0.6, 0.3, 1.1) == [2, 1]


def test_last_and_best_are_delivered_as_requested() -> None:
    assert chosen(0.3, 0.5, deliver=DeliveredEpoch.LAST) == [2]
    assert chosen(0.3, 1.5, deliver=DeliveredEpoch.LAST) == [2]
    noisy = [record(1, 0.40), record(2, 0.41, 0.2, -0.2, 0.2, -0.2)]
    assert epochs_to_deliver(noisy, BEFORE, DeliveredEpoch.AUTO) == noisy[1:]
    assert epochs_to_deliver(noisy, BEFORE, DeliveredEpoch.BEST) == noisy


@pytest.mark.parametrize("deliver", list(DeliveredEpoch))
def test_nothing_worse_than_the_base_is_delivered(deliver: DeliveredEpoch) -> None:
    assert chosen(1.2, 1.1, 1.01, deliver=deliver) == []
    assert chosen(float("nan"), deliver=deliver) == []


def measure(monkeypatch: pytest.MonkeyPatch, losses: Callable[[int, float], float]) -> None:
    """Measure every tenth epoch and the last: ``losses`` of epoch and learning rate."""
    plain = MemorySession.history.fget  # type: ignore[attr-defined]  # a property's own

    def history(session: MemorySession) -> list[EpochRecord]:
        return [
            replace(
                record(epoch.epoch, losses(epoch.epoch, epoch.learning_rate)),
                learning_rate=epoch.learning_rate,
            )
            if epoch.epoch % 10 == 0 or epoch.epoch == 25
            else epoch
            for epoch in plain(session)
        ]

    monkeypatch.setattr(MemorySession, "history", property(history))
    monkeypatch.setattr(MemorySession, "baseline", BEFORE)


def best_at_20(epoch: int, _rate: float) -> float:
    return {10: 0.6, 20: 0.4, 25: 0.7}[epoch]


def unlearnable(_epoch: int, _rate: float) -> float:
    return 5.0


def learnable_when_slow(epoch: int, rate: float) -> float:
    return 5.0 if rate > 5e-3 else 1 / epoch


def style_of(world: World, epoch: int) -> bytes:
    return world.blobs.get(KEYS.epoch_style(TASK_ID, epoch)).data


def test_the_weights_of_the_best_checkpoint_are_delivered_and_announced(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(monkeypatch, best_at_20)
    config = replace(CONFIG, keep_checkpoints=None)
    assert world.worker(config=config)(a_task(), StopSignal()) == Ack()
    assert world.weights() == style_of(world, 20) != style_of(world, 25)
    metric = world.job().metric
    losses = {"measured_loss": record(20, 0.4).measured_loss, "base_loss": BEFORE.measured_loss}
    assert metric == TrainingMetric(0.5, 25, 75, best_epoch=20, delivered_epoch=20, **losses)
    (call,) = world.notifier.final
    assert call.payload == (world.job().artifact, metric)


def test_a_resumed_run_delivers_the_same_epoch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(monkeypatch, best_at_20)
    stop = StopSignal()
    trainer = Watched(world, 70, lambda: stop.request(StopReason.SHUTDOWN))
    config = replace(CONFIG, keep_checkpoints=None)
    world.worker(trainer=trainer, config=config)(a_task(), stop)
    assert world.worker(config=config)(a_task(), StopSignal()) == Ack()
    assert world.weights() == style_of(world, 20)


def test_without_its_checkpoint_the_next_best_epoch_is_delivered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(monkeypatch, best_at_20)
    lost = KEYS.checkpoint(TASK_ID, 20, 60)
    trainer = Watched(world, 75, lambda: world.blobs.delete(lost))
    config = replace(CONFIG, keep_checkpoints=None)
    assert world.worker(trainer=trainer, config=config)(a_task(), StopSignal()) == Ack()
    assert world.weights() == style_of(world, 10)


def test_a_diverging_run_is_retried_with_a_tenth_of_the_learning_rate(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(monkeypatch, learnable_when_slow)
    assert world.worker()(a_task(learning_rate=0.03), StopSignal()) == Ack()
    job = world.job()
    assert job.state is JobState.COMPLETED
    assert job.parameters is not None
    assert job.parameters.learning_rate == pytest.approx(0.003)
    assert job.metric is not None
    assert (job.metric.delivered_epoch, job.attempt) == (25, 1)
    (again,) = [event for event in world.events if isinstance(event, SecondTryBegan)]
    assert again.learning_rate == pytest.approx(0.003)


def test_a_run_whose_loss_is_not_finite_is_retried(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflows_when_fast(epoch: int, rate: float) -> float:
        return math.inf if rate > 5e-3 else 1 / epoch

    measure(monkeypatch, overflows_when_fast)
    assert world.worker()(a_task(learning_rate=0.03), StopSignal()) == Ack()
    assert world.job().state is JobState.COMPLETED


def failed(world: World) -> list[FailureCode]:
    payloads = [call.payload for call in world.notifier.final]
    return [payload.code for payload in payloads if isinstance(payload, Failure)]


def test_after_the_second_try_the_job_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(monkeypatch, unlearnable)
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.trainer.opened == 2
    assert failed(world) == [FailureCode.STYLE_NOT_LEARNED]
    assert KEYS.weights(7) not in world.blobs.blobs


def test_a_worker_killed_in_the_second_try_starts_no_third(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(monkeypatch, unlearnable)
    stop = StopSignal()
    trainer = Watched(
        world, 40, lambda: stop.request(StopReason.SHUTDOWN) if world.job().second_try else None
    )
    world.worker(trainer=trainer)(a_task(), stop)
    job = world.job()
    assert (job.state, job.second_try) == (JobState.INTERRUPTED, True)
    assert job.parameters is not None
    assert job.parameters.learning_rate == pytest.approx(1e-5)
    assert world.until_settled(a_task()) == Ack()
    assert trainer.opened + world.trainer.opened == 3, "two tries, the second one in two parts"
    assert failed(world) == [FailureCode.STYLE_NOT_LEARNED]


def test_without_a_divergence_there_is_no_second_try(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = MemorySession.history.fget  # type: ignore[attr-defined]  # a property's own
    noise = (0.2, -0.2, 0.2, -0.19)
    worse = record(25, 1.0, *noise)
    monkeypatch.setattr(
        MemorySession,
        "history",
        property(lambda session: [worse if r.epoch == 25 else r for r in plain(session)]),
    )
    monkeypatch.setattr(MemorySession, "baseline", BEFORE)
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.trainer.opened == 1
    assert failed(world) == [FailureCode.STYLE_NOT_LEARNED]
