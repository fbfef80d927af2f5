"""Evaluation with fixed noises: comparable, without effect on the run, and sensitive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.evaluation import PREDICTIONS, held_out_positions, trained_buckets
from adapters.diffusion.execution import ExecutionOptions
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from domain.image import TrainingImage
from tests.diffusion.fake_cuda_graph import FakeGraphRecorder
from tests.diffusion.runs import finish, plan_of, run, weights_of

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]


def different(count: int) -> list[frozenset[int]]:
    """Images without near duplicates."""
    return [frozenset({position}) for position in range(count)]


@pytest.mark.parametrize(
    ("count", "split", "held"),
    [
        *[(10, 0.0, 0), (10, 0.1, 1), (10, 0.01, 1), (20, 0.25, 5), (20, 0.13, 3), (12, 0.5, 6)],
        *[(1, 0.5, 0), (2, 0.5, 1), (3, 0.5, 2), (11, 0.5, 6)],
    ],
)
def test_the_share_of_images_is_held_out_but_never_all(
    count: int, split: float, held: int
) -> None:
    positions = held_out_positions(different(count), split, seed=3)
    assert len(positions) == held
    assert positions <= set(range(count))
    assert held_out_positions(different(count), split, seed=3) == positions
    assert len({held_out_positions(different(30), 0.1, seed) for seed in range(8)}) > 1


def test_near_duplicates_are_held_out_or_trained_on_together() -> None:
    groups = [frozenset({0, 4, 7}), *different(10)[1:]]
    for position in groups[0]:
        groups[position] = groups[0]
    held = [held_out_positions(groups, 0.2, seed) for seed in range(20)]
    assert {len(positions & groups[0]) for positions in held} == {0, 3}
    assert all(positions for positions in held)


@pytest.mark.parametrize("alike", [6, 9])
def test_never_more_than_half_is_held_out_however_many_near_duplicates(alike: int) -> None:
    together = frozenset(range(alike))
    groups = [together] * alike + different(10)[alike:]
    held = [held_out_positions(groups, 0.1, seed) for seed in range(20)]
    assert all(len(positions) == 1 and not positions & together for positions in held)
    assert held_out_positions([frozenset(range(10))] * 10, 0.5, seed=0) == frozenset()


def test_a_bucket_without_a_trained_image_is_left_out() -> None:
    buckets = {(64, 64): (0, 1, 2), (72, 56): (3,)}
    assert trained_buckets(buckets, {1, 3}) == {(64, 64): (0, 2)}


def test_epochs_are_measured_at_the_interval_and_at_the_end(
    trainer: DiffusionTrainer, images: Images
) -> None:
    def measured(**parameters: Any) -> list[int]:
        history = run(trainer, plan_of(images[:1], epochs=5, **parameters)).history
        return [record.epoch for record in history if record.evaluation_loss is not None]

    assert measured(validation_epochs=2) == [2, 4, 5]
    assert measured(validation_epochs=10) == [5]
    assert measured(validation_epochs=0) == []


def test_measuring_changes_nothing_in_the_run(trainer: DiffusionTrainer, images: Images) -> None:
    def trained(every: int) -> tuple[torch.Tensor, list[float]]:
        plan = plan_of(images[:2], lora_dropout=0.2, validation_epochs=every)
        with trainer.open(plan, None) as session:
            while not session.finished:
                session.advance()
            return weights_of(session).clone(), [record.loss for record in session.history]

    weights, losses = trained(1)
    unmeasured, same_losses = trained(0)
    assert torch.equal(weights, unmeasured)
    assert losses == same_losses


def test_equal_weights_measure_equal_and_after_a_resume_too(
    trainer: DiffusionTrainer, images: Images
) -> None:
    plan = plan_of(images[:3], epochs=2, validation_epochs=1, validation_split=0.2)
    uninterrupted = run(trainer, plan)
    first = run(trainer, plan, steps=3)
    assert run(trainer, plan, resume=first.checkpoint) == uninterrupted
    still = plan_of(images[:1], validation_epochs=1, learning_rate=1e-12)
    losses = [record.evaluation_loss for record in run(trainer, still).history]
    assert losses == pytest.approx([losses[0]] * 2, rel=1e-6)


def test_held_out_images_are_not_trained_on(trainer: DiffusionTrainer, images: Images) -> None:
    def trained(images: Images) -> tuple[torch.Tensor, float]:
        plan = plan_of(images, epochs=1, validation_split=0.4, validation_epochs=1)
        with trainer.open(plan, None) as session:
            assert session.total_steps == 3
            while not session.finished:
                session.advance()
            (record,) = session.history
            return weights_of(session).clone(), record.validation_loss or 0.0

    weights, loss = trained(images)
    reworded = tuple(
        replace(image, caption="something else entirely") if i in held else image
        for held in [held_out_positions(different(5), 0.4, seed=0)]
        for i, image in enumerate(images)
    )
    same_weights, other_loss = trained(reworded)
    assert torch.equal(weights, same_weights)
    assert loss != other_loss


def test_a_measurement_covers_the_whole_schedule(
    trainer: DiffusionTrainer, base: BaseModel, images: Images
) -> None:
    timesteps: list[int] = []

    def note(_: torch.nn.Module, inputs: Any, __: Any) -> None:
        if not torch.is_grad_enabled():
            timesteps.extend(inputs[1].tolist())

    hook = base.unet.register_forward_hook(note)
    try:
        run(trainer, plan_of(images[:2], epochs=1, validation_epochs=1))
    finally:
        hook.remove()
    assert len(timesteps) == 2 * PREDICTIONS, "before the first step and at the end"
    assert timesteps[:PREDICTIONS] == timesteps[PREDICTIONS:]
    assert min(timesteps) < 1000 / PREDICTIONS
    assert max(timesteps) >= 1000 - 1000 / PREDICTIONS


class OfMeasurements(FakeGraphRecorder):
    """A recorder that captures measurements and fails on training steps."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        if torch.is_grad_enabled():
            raise RuntimeError("operation not permitted when stream is capturing")
        return super().record(function)


def test_captured_measurements_equal_eager_ones_bit_for_bit(
    trainer: DiffusionTrainer, base: BaseModel, images: Images
) -> None:
    plan = plan_of(images[:3], epochs=4, validation_epochs=1, validation_split=0.2)
    recorder = OfMeasurements()
    fast = DiffusionTrainer(
        base,
        decode,
        execution=ExecutionOptions(merged_lora=True, make_recorder=lambda _: recorder),
    )
    found = run(fast, plan)
    assert found == run(trainer, plan)
    assert recorder.replayed
    assert len({record.evaluation_loss for record in found.history}) == 4


def test_steps_out_of_memory_get_that_of_captured_measurements(
    trainer: DiffusionTrainer,
    base: BaseModel,
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = plan_of(images[:1], epochs=6, validation_epochs=1)
    wanted = run(trainer, plan)
    recorder = OfMeasurements()
    fast = DiffusionTrainer(
        base,
        decode,
        execution=ExecutionOptions(merged_lora=True, make_recorder=lambda _: recorder),
    )
    forward = base.unet.forward

    def full(*arguments: Any, **keywords: Any) -> Any:
        dropped = "CUDA graphs of measurements are disabled" in caplog.text
        if torch.is_grad_enabled() and recorder.replayed and not dropped:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*arguments, **keywords)

    monkeypatch.setattr(base.unet, "forward", full)
    assert run(fast, plan) == wanted
    assert "CUDA graphs of measurements are disabled: steps need the memory" in caplog.text
    assert "out of memory, continuing with" not in caplog.text


def test_fewer_predictions_are_batched_where_memory_is_short(
    trainer: DiffusionTrainer,
    base: BaseModel,
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_of(images[:1], epochs=1, validation_epochs=1)
    wanted = run(trainer, plan).history[0].evaluation_loss
    forward, passes = base.unet.forward, []

    def limited(sample: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():
            if len(sample) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            passes.append(len(sample))
        return forward(sample, *arguments, **keywords)

    monkeypatch.setattr(base.unet, "forward", limited)
    assert run(trainer, plan).history[0].evaluation_loss == pytest.approx(wanted, rel=1e-5)
    assert passes == [1] * 2 * PREDICTIONS, "of the base and of the epoch"


def test_overfitting_shows_in_the_held_out_loss_and_a_resume_is_exact(
    trainer: DiffusionTrainer, images: Images
) -> None:
    """Overfit one image, with another one held out."""
    plan = plan_of(images[:2], epochs=40, validation_split=0.5, validation_epochs=40)
    with trainer.open(plan, None) as session:
        for _ in range(30):
            session.advance()
        checkpoint = session.checkpoint().data
        uninterrupted = finish(session)
        before, last = session.baseline, session.history[-1]
    assert run(trainer, plan, resume=checkpoint) == uninterrupted
    assert before is not None
    assert (last.evaluation_loss or 0) < 0.8 * (before.evaluation_loss or 0)
    apart = [(r.validation_loss or 0) / (r.evaluation_loss or 1) for r in (before, last)]
    assert apart[1] > 1.2 * apart[0]
