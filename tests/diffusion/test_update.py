"""What follows a backward pass, on a handful of weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters.diffusion.data.step_inputs import LEARNING_RATE_SLOTS, StepInputs
from adapters.diffusion.step.update import Update
from domain.parameters import OptimizerName, TrainingParameters
from tests.diffusion.runs import needs_prodigy

RATE = 0.25


def update_of(*, loss_scaling: bool = False, text_weights: int = 0, **parameters: Any) -> Update:
    """Of four weights that are 1, and a decay of nothing."""
    weights = torch.nn.Parameter(torch.ones(4))
    weights.grad = torch.zeros(4)
    asked = TrainingParameters(epochs=1, resolution=64, weight_decay=0.0, **parameters)
    return Update(weights, asked, loss_scaling=loss_scaling, text_weights=text_weights)


def step(update: Update, gradient: list[float], loss: float = 0.0) -> None:
    """One step at the rate, along a gradient as a backward pass leaves it."""
    slots = torch.tensor([RATE] + [0.0] * (LEARNING_RATE_SLOTS - 1))
    nothing = torch.zeros(3, 1, dtype=torch.long)
    inputs = StepInputs((8, 8), (1, 0, 0, 0), slots, nothing, RATE)
    update.gradient.copy_(update.scaled(torch.tensor(gradient)))
    update(inputs, torch.tensor(loss))


@pytest.mark.parametrize("loss_scaling", [False, True])
def test_an_epochs_losses_and_norms_are_noted_before_clipping(loss_scaling: bool) -> None:
    update = update_of(loss_scaling=loss_scaling, max_grad_norm=1.0)
    step(update, [6.0, 8.0, 0.0, 0.0], loss=3.0)
    step(update, [0.0, 0.0, 3.0, 4.0], loss=5.0)
    readings = update.read(torch.ones(4))
    assert (readings.loss, readings.gradient_norm) == pytest.approx((8.0, 15.0))
    assert readings.largest_gradient_norm == pytest.approx(10.0)
    assert readings.moved == pytest.approx((update.weights - 1).abs().max().item())
    assert not update.gradient.any()


@pytest.mark.parametrize("loss_scaling", [False, True])
def test_a_gradient_that_is_too_long_is_clipped_and_no_other(loss_scaling: bool) -> None:
    def moment(gradient: list[float]) -> list[float]:
        update = update_of(loss_scaling=loss_scaling, max_grad_norm=1.0)
        step(update, gradient)
        return (10 * update.optimizer_state.tensors["exp_avg"]).tolist()

    assert moment([6.0, 8.0, 0.0, 0.0]) == pytest.approx([0.6, 0.8, 0.0, 0.0], rel=1e-4)
    assert moment([0.3, 0.4, 0.0, 0.0]) == pytest.approx([0.3, 0.4, 0.0, 0.0], rel=1e-4)


def test_losses_are_scaled_where_asked_and_nowhere_else() -> None:
    assert update_of().loss_scale == (1.0, 0)
    assert update_of().factor(4).item() == 0.25
    scaling = update_of(loss_scaling=True)
    assert scaling.factor(4).item() == scaling.loss_scale[0] / 4 > 1000


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_an_overflow_moves_nothing_is_no_divergence_and_lowers_the_scale(number: float) -> None:
    update = update_of(loss_scaling=True)
    before = update.loss_scale[0]
    step(update, [number, 1.0, 1.0, 1.0], loss=2.0)
    readings = update.read(torch.ones(4))
    assert readings.finite
    assert (readings.loss, readings.gradient_norm, readings.moved) == (2.0, 0.0, 0.0)
    assert update.loss_scale == (before / 2, 0)
    step(update, [1.0, 1.0, 1.0, 1.0])
    assert update.read(torch.ones(4)).moved > 0


def test_without_scaling_a_gradient_that_is_no_number_shows() -> None:
    update = update_of()
    step(update, [float("inf"), 1.0, 1.0, 1.0], loss=2.0)
    assert not update.read(torch.ones(4)).finite


def test_the_text_encoders_weights_move_at_their_own_rate() -> None:
    update = update_of(
        text_weights=1, train_text_encoder=True, learning_rate=1e-3, text_encoder_lr=2e-4
    )
    step(update, [1.0, 1.0, 1.0, 1.0])
    moved = 1 - update.weights
    assert moved.tolist() == pytest.approx([RATE, RATE, RATE, RATE / 5], rel=1e-3)


@pytest.mark.parametrize("loss_scaling", [False, True])
def test_what_is_restored_goes_on_as_it_would_have(loss_scaling: bool) -> None:
    whole, other = (update_of(loss_scaling=loss_scaling) for _ in range(2))
    step(whole, [0.5, -0.5, 0.1, 0.0], loss=1.0)
    optimizer, notes, scale = whole.optimizer_state.copy(), whole.notes.clone(), whole.loss_scale
    assert scale[1] == int(loss_scaling)
    weights = whole.weights.clone()
    step(whole, [0.1, 0.2, 0.3, 0.4], loss=2.0)
    step(other, [float("inf"), 9.0, 9.0, 9.0], loss=9.0)
    other.gradient.fill_(1.0)  # as a step that broke off leaves it
    other.weights.copy_(weights)
    other.restore(optimizer, notes, scale)
    assert not other.gradient.any()
    step(other, [0.1, 0.2, 0.3, 0.4], loss=2.0)
    assert torch.equal(other.weights, whole.weights)
    assert torch.equal(other.notes, whole.notes)
    assert other.loss_scale == whole.loss_scale


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("prodigy", marks=needs_prodigy)])
def test_what_is_restored_may_have_been_taken_before_the_first_step(optimizer: str) -> None:
    update = update_of(optimizer=OptimizerName(optimizer))
    optimizer_state, notes = update.optimizer_state.copy(), update.notes.clone()
    moved = []
    for _ in range(2):
        update.weights.fill_(1.0)
        update.restore(optimizer_state, notes, update.loss_scale)
        step(update, [0.1, 0.2, 0.3, 0.4], loss=1.0)
        moved.append(update.weights.clone())
    assert torch.equal(*moved)
    assert update.notes[0] == 1.0
