"""Training on a style makes other images of that style likelier.

The artist has three subjects, each painted several times and never the same. So a caption
describes much of its image, and a trainer that mixes captions up learns to expect the wrong one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.trainer import DiffusionTrainer
from assets.drawing import compose_scene, describe, paint_ink_and_wash
from domain.image import TrainingImage
from tests.diffusion.runs import drive, plan_of, read_images

pytestmark = [pytest.mark.integration, pytest.mark.long]

SUBJECTS = 3


def paint_subjects(folder: Path, seed: int) -> tuple[TrainingImage, ...]:
    """Four images of each subject; the seed decides everything except the subject."""
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


def test_training_lowers_the_loss_on_images_it_has_not_seen(
    trainer: DiffusionTrainer, base: BaseModel, tmp_path: Path
) -> None:
    plan = plan_of(
        paint_subjects(tmp_path, seed=1),
        epochs=40,
        batch_size=3,
        resolution=base.native_resolution,
        rank=8,
        learning_rate=8e-3,
        validation_split=0.5,
        validation_epochs=40,
    )
    with trainer.open(plan, None) as session:
        drive(session)
        assert session.baseline is not None
        before = session.baseline.validation_loss
        after = session.history[-1].validation_loss
    assert before is not None
    assert after is not None
    assert after < 0.6 * before
