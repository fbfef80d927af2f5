"""Runs of the real trainer: exact, reproducible, resumable, and without effect on the base."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data import preparation
from adapters.diffusion.optimizer import learning_rates
from adapters.diffusion.train_step import Batch, image_losses
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.diffusion.training_model import TrainingModel
from adapters.images.decode import decode
from application.ports import CheckpointRejected
from domain.image import TrainingImage
from tests.diffusion.runs import EVERY_OPTION, Outcome, plan_of, run, weights_of

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]


@pytest.fixture(scope="module")
def uninterrupted(base: BaseModel, images: Images) -> Outcome:
    return run(DiffusionTrainer(base, decode, "cpu"), plan_of(images[2:], **EVERY_OPTION))


@pytest.fixture(scope="module")
def without_options(base: BaseModel, images: Images) -> torch.Tensor:
    """The weights after two steps of a run with default options."""
    with DiffusionTrainer(base, decode).open(plan_of(images[:3]), None) as session:
        for _ in range(2):
            session.advance()
        return weights_of(session).clone()


@pytest.mark.parametrize("steps", [0, 3, 4])
def test_a_resumed_run_gives_the_bytes_of_an_uninterrupted_one(
    trainer: DiffusionTrainer, images: Images, uninterrupted: Outcome, steps: int
) -> None:
    plan = plan_of(images[2:], **EVERY_OPTION)
    torch.manual_seed(steps)
    first = run(trainer, plan, steps=steps)
    torch.manual_seed(99)
    assert run(trainer, plan, resume=first.checkpoint) == uninterrupted


@pytest.mark.parametrize(
    "option",
    [
        {"random_flip": True},
        {"caption_dropout": 1.0},
        {"noise_offset": 0.1},
        {"snr_gamma": 1.0},
        {"trigger_word": "inkwash"},
        {"weight_decay": 0.5},
        {"max_grad_norm": 1e-3},
        {"lr_scheduler": "linear"},
        {"lr_warmup_steps": 2},
        {"alpha": 1.0},
        {"batch_size": 2},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_reaches_the_training(
    trainer: DiffusionTrainer,
    images: Images,
    without_options: torch.Tensor,
    option: dict[str, Any],
) -> None:
    with trainer.open(plan_of(images[:3], **option), None) as session:
        for _ in range(2):
            session.advance()
        assert not torch.equal(weights_of(session), without_options)


def test_steps_epochs_and_losses_are_reported_as_they_happen(
    trainer: DiffusionTrainer, images: Images
) -> None:
    plan = plan_of(images, batch_size=2)
    with trainer.open(plan, None) as session:
        # Four square images make two batches; the fifth has a bucket of its own.
        assert session.total_steps == 6
        reports = [session.advance() for _ in range(6)]
        assert session.finished
        with pytest.raises(RuntimeError, match="finished"):
            session.advance()
        history = session.history
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.epoch for report in reports] == [0, 0, 1, 1, 1, 2]
    assert [report.epoch_finished for report in reports] == [False, False, True] * 2
    assert [record.epoch for record in history] == [1, 2]
    assert all(record.loss > 0 for record in history)
    rates = learning_rates(plan.parameters, 6)
    assert [record.learning_rate for record in history] == [rates[2], rates[5]]


def test_a_session_leaves_the_base_bit_for_bit(
    trainer: DiffusionTrainer, base: BaseModel, images: Images
) -> None:
    parts = ("unet", "vae", "text_encoder")
    before = {part: copy.deepcopy(getattr(base, part).state_dict()) for part in parts}
    run(trainer, plan_of(images, epochs=1))
    for part in parts:
        after = getattr(base, part).state_dict()
        assert after.keys() == before[part].keys()
        assert all(torch.equal(after[name], before[part][name]) for name in after)


def test_a_checkpoint_of_other_parameters_images_captions_or_base_is_rejected(
    trainer: DiffusionTrainer, base: BaseModel, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(images[:2])
    checkpoint = run(trainer, plan, steps=1).checkpoint
    with monkeypatch.context() as patch:  # a version with another rule
        patch.setattr(preparation, "bucket_of", lambda *_: (56, 64))
        with pytest.raises(CheckpointRejected, match="other image sizes"):
            run(trainer, plan, resume=checkpoint)
    with pytest.raises(CheckpointRejected, match="rank was 4, now it is 2"):
        run(trainer, plan_of(images[:2], rank=2), resume=checkpoint)
    with pytest.raises(CheckpointRejected, match="other images"):
        run(trainer, plan_of(images[1:3]), resume=checkpoint)
    reworded = (images[0], replace(images[1], caption="something else"))
    with pytest.raises(CheckpointRejected, match="other captions"):
        run(trainer, plan_of(reworded), resume=checkpoint)
    elsewhere = DiffusionTrainer(replace(base, fingerprint="other"), decode)
    with pytest.raises(CheckpointRejected, match="other base model"):
        run(elsewhere, plan, resume=checkpoint)
    assert run(trainer, plan, resume=checkpoint).history


def test_the_loss_of_an_epoch_is_the_mean_over_its_images(
    trainer: DiffusionTrainer, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[torch.Tensor] = []

    def noted(model: TrainingModel, batch: Batch) -> torch.Tensor:
        losses = image_losses(model, batch)
        found.append(losses.detach())
        return losses

    monkeypatch.setattr("adapters.diffusion.train_step.image_losses", noted)
    plan = plan_of(images[:3], epochs=2, batch_size=2)
    history = run(trainer, plan).history
    for record, of_epoch in zip(history, (found[:2], found[2:]), strict=True):
        assert record.loss == pytest.approx(torch.cat(of_epoch).mean().item())
