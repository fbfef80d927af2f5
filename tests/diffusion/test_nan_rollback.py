"""NaN losses and gradients, and stalled training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from adapters.diffusion import session as session_module
from adapters.diffusion.optimizer import AdamW
from adapters.diffusion.trainer import DiffusionTrainer
from domain.failure import FailureCode, TrainingFailed
from domain.image import TrainingImage
from tests.diffusion.runs import finish, plan_of, run, weights_of

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]
Poison = Callable[[int], None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """``poison(passes)`` multiplies the loss of the next passes by infinity."""
    backward = torch.autograd.backward
    left = [0]

    def poisoned(loss: torch.Tensor) -> None:
        if left[0]:
            left[0] -= 1
            loss = loss * float("inf")
        backward(loss)

    def arm(passes: int) -> None:
        left[0] = passes

    monkeypatch.setattr(torch.autograd, "backward", poisoned)
    return arm


def test_a_run_rolls_back_to_its_last_good_epoch_with_a_lower_learning_rate(
    trainer: DiffusionTrainer, images: Images, poison: Poison, caplog: Any
) -> None:
    plan = plan_of(images[:3], epochs=3, lr_scheduler="constant_with_warmup", lr_warmup_steps=0)
    undisturbed = run(trainer, plan)
    with trainer.open(plan, None) as session:
        reports = [session.advance() for _ in range(4)]
        poison(1)
        reports += [session.advance() for _ in range(2)]
        assert (reports[-1].step, reports[-1].epoch, reports[-1].epoch_finished) == (3, 1, False)
        outcome = finish(session)
    assert [record.learning_rate for record in outcome.history] == [0.01, 0.005, 0.005]
    assert outcome.history[0] == undisturbed.history[0]
    assert torch.isfinite(torch.tensor([record.loss for record in outcome.history])).all()
    assert "rolled back to step 3 with 0.5 of the learning rate" in caplog.text
    for record in outcome.history:
        assert 0 < (record.gradient_norm or 0) <= (record.largest_gradient_norm or 0)


def test_nan_weights_are_detected_and_rolled_back(
    trainer: DiffusionTrainer, images: Images
) -> None:
    with trainer.open(plan_of(images[:3]), None) as session:
        session.advance()
        weights_of(session)[0] = float("nan")
        outcome = finish(session)
        assert torch.isfinite(weights_of(session)).all()
    assert len(outcome.history) == 2


def test_a_run_that_keeps_diverging_fails(
    trainer: DiffusionTrainer, images: Images, poison: Poison
) -> None:
    with trainer.open(plan_of(images[:1], epochs=2), None) as session:
        poison(100)
        for _ in range(3):
            assert session.advance().step == 0
        with pytest.raises(TrainingFailed, match="epoch 1") as failed:
            session.advance()
    assert failed.value.failure.code is FailureCode.LOSS_DIVERGED
    assert not failed.value.failure.retryable


def test_rollbacks_are_counted_in_the_checkpoint(
    trainer: DiffusionTrainer, images: Images, poison: Poison
) -> None:
    plan = plan_of(images[:2], epochs=3)
    with trainer.open(plan, None) as session:
        poison(1)
        session.advance()
        session.advance()
        session.advance()
        taken = session.checkpoint()
        uninterrupted = finish(session)
    assert run(trainer, plan, resume=taken.data) == uninterrupted
    with trainer.open(plan, taken.data) as session:
        poison(100)
        # One failure is spent; each of the two that are left leads back by the one step.
        for _ in range(2):
            assert session.advance().step == 1
        with pytest.raises(TrainingFailed):
            session.advance()


def test_a_checkpoint_never_contains_nan(
    trainer: DiffusionTrainer, images: Images, poison: Poison
) -> None:
    """The checkpoint holds the last finite state, and a run resumed from it ends the same."""
    plan = plan_of(images[:3], epochs=2)
    with trainer.open(plan, None) as session:
        for _ in range(6):  # the last three of them in vain
            if session.advance().step == 3:
                poison(1)
        session.advance()
        taken = session.checkpoint()
        assert (taken.epoch, taken.step) == (1, 3)
        uninterrupted = finish(session)
    with trainer.open(plan, taken.data) as session:
        poison(1)
        assert finish(session) == uninterrupted


@pytest.mark.parametrize(("where", "broken"), [(torch.autograd, "backward"), (AdamW, "step")])
def test_stalled_training_is_logged_once(
    trainer: DiffusionTrainer,
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: Any,
    broken: str,
) -> None:
    caplog.set_level(logging.WARNING)
    with trainer.open(plan_of(images[:1], epochs=4), None) as session:
        session.advance()
        session.advance()
        monkeypatch.setattr(where, broken, lambda _: None)
        finish(session)
        assert [record.stalled for record in session.history] == [False, False, True, True]
    assert caplog.text.count("has stalled") == 1
    assert "epoch 3: the training has stalled" in caplog.text


def test_a_learning_rate_of_zero_is_not_stalled_training(
    trainer: DiffusionTrainer, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "learning_rates", lambda _, steps: [0.0] * steps)
    outcome = run(trainer, plan_of(images[:2], epochs=2))
    assert [record.stalled for record in outcome.history] == [False, False]
