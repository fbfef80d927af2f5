"""Training on a style makes other images of that style likelier.

The artist has three subjects, each painted several times and never the same. So a caption tells
much of its image, and a trainer that mixes captions up learns to expect the wrong one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.dataset import EncodedDataset
from adapters.diffusion.trainer import DiffusionTrainer
from assets.drawing import compose_scene, describe, paint_ink_and_wash
from domain.image import TrainingImage
from domain.training_plan import TrainingPlan
from tests.diffusion.held_out import encode_held_out, held_out_loss
from tests.diffusion.runs import plan_of, read_images, run

pytestmark = [pytest.mark.integration, pytest.mark.long]

MARGIN = 0.70
"""Share of the base's held-out loss that training has to take away."""
TIMESTEPS = range(150, 1000, 100)
SUBJECTS = 3


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


def test_training_lowers_the_loss_on_images_it_has_not_seen(
    trainer: DiffusionTrainer,
    base: BaseModel,
    plan: TrainingPlan,
    held_out: EncodedDataset,
    tmp_path: Path,
) -> None:
    file = tmp_path / "style.safetensors"
    file.write_bytes(run(trainer, plan).weights)
    before = held_out_loss(base, None, held_out, TIMESTEPS)
    assert held_out_loss(base, file, held_out, TIMESTEPS) < (1 - MARGIN) * before
