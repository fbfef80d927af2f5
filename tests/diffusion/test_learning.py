"""Training on a style makes other images of that style likelier; broken training does not.

The artist has three subjects, each painted several times and never the same. So a caption tells
much of its image, and a trainer that mixes captions up learns to expect the wrong one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapters.diffusion import session
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.dataset import EncodedDataset
from adapters.diffusion.objective import Objective
from adapters.diffusion.optimizer import build_optimizer
from adapters.diffusion.trainer import DiffusionTrainer
from application.ports import TrainingPlan
from assets.drawing import compose_scene, describe, paint_ink_and_wash
from domain.image import TrainingImage
from tests.diffusion.held_out import encode_held_out, held_out_loss
from tests.diffusion.runs import plan_of, read_images, run

pytestmark = [pytest.mark.integration, pytest.mark.long]

MARGIN = 0.70
"""Share of the base's held-out loss that training has to take away."""
TIMESTEPS = range(150, 1000, 100)
SUBJECTS = 3

Break = Callable[[pytest.MonkeyPatch, TrainingPlan], TrainingPlan]


def paint_subjects(folder: Path, seed: int) -> tuple[TrainingImage, ...]:
    """Four images of each subject; the seed decides all but what is in them."""
    rng = np.random.default_rng(5)
    scenes = [compose_scene(rng) for _ in range(SUBJECTS)]
    rng = np.random.default_rng(seed)
    paths = []
    for index, scene in enumerate(scenes * 4):
        path = folder / f"image_{index:02d}.png"
        paint_ink_and_wash(scene, rng, 320).save(path)
        path.with_suffix(".txt").write_text(describe(scene), encoding="utf-8")
        paths.append(path)
    return read_images(paths)


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingImage, ...]:
    return paint_subjects(tmp_path_factory.mktemp("style"), seed=1)


@pytest.fixture(scope="module")
def held_out(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> EncodedDataset:
    return encode_held_out(base, paint_subjects(tmp_path_factory.mktemp("held_out"), seed=2))


@pytest.fixture
def plan(base: BaseModel, style: tuple[TrainingImage, ...]) -> TrainingPlan:
    return plan_of(
        style,
        epochs=25,
        batch_size=4,
        resolution=base.native_resolution,
        rank=8,
        learning_rate=8e-3,
    )


def gain(base: BaseModel, style: bytes, held_out: EncodedDataset, folder: Path) -> float:
    """Share of the base's held-out loss that the style takes away."""
    file = folder / "style.safetensors"
    file.write_bytes(style)
    before = held_out_loss(base, None, held_out, TIMESTEPS)
    return 1 - held_out_loss(base, file, held_out, TIMESTEPS) / before


def no_learning_rate(monkeypatch: pytest.MonkeyPatch, plan: TrainingPlan) -> TrainingPlan:
    monkeypatch.setattr(session, "learning_rate_of", lambda *_: lambda _: 0.0)
    return plan


def adapters_not_attached(monkeypatch: pytest.MonkeyPatch, plan: TrainingPlan) -> TrainingPlan:
    """The optimizer works on a copy of the weights that the UNet does not see."""
    build = build_optimizer

    def of_a_copy(weights: torch.Tensor, parameters: Any) -> Any:
        copy = torch.nn.Parameter(weights.detach().clone())
        copy.grad = torch.ones_like(copy)
        return build(copy, parameters)

    monkeypatch.setattr(session, "build_optimizer", of_a_copy)
    return plan


def shuffled_captions(_: pytest.MonkeyPatch, plan: TrainingPlan) -> TrainingPlan:
    captions = [image.caption for image in plan.images]
    moved = captions[1:] + captions[:1]
    assert all(caption != own for caption, own in zip(moved, captions, strict=True))
    images = tuple(
        replace(image, caption=caption) for image, caption in zip(plan.images, moved, strict=True)
    )
    return replace(plan, images=images)


def wrong_target(monkeypatch: pytest.MonkeyPatch, plan: TrainingPlan) -> TrainingPlan:
    """The denoiser is asked for the image where it should give the noise."""
    monkeypatch.setattr(Objective, "target", lambda _self, latents, _noise, _timesteps: latents)
    return plan


def test_training_lowers_the_loss_on_images_it_has_not_seen(
    trainer: DiffusionTrainer,
    base: BaseModel,
    plan: TrainingPlan,
    held_out: EncodedDataset,
    tmp_path: Path,
) -> None:
    style = run(trainer, plan).weights
    assert gain(base, style, held_out, tmp_path) > MARGIN


@pytest.mark.parametrize(
    "broken", [no_learning_rate, adapters_not_attached, shuffled_captions, wrong_target]
)
def test_a_broken_trainer_does_not_reach_the_margin(
    trainer: DiffusionTrainer,
    base: BaseModel,
    plan: TrainingPlan,
    held_out: EncodedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: Break,
) -> None:
    with monkeypatch.context() as patch:
        style = run(trainer, broken(patch, plan)).weights
    assert gain(base, style, held_out, tmp_path) < MARGIN
