"""Fixtures for all tests of the trainer: the small base and a few drawn images."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.diffusion.base.model import BaseModel, load_base
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from assets.drawing import draw_style_set
from domain.image import TrainingImage
from tests.diffusion.runs import read_images

PREVIEW_STEPS = 4
SMALL_BASE = Path(__file__).resolve().parents[2] / "assets" / "small_base"


@pytest.fixture(scope="session")
def small_base_folder() -> Path:
    return SMALL_BASE


@pytest.fixture(scope="session")
def base() -> BaseModel:
    return load_base(str(SMALL_BASE))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingImage, ...]:
    """Five images with captions, the last of them not square."""
    folder = tmp_path_factory.mktemp("images")
    return read_images(draw_style_set(folder, count=5, seed=11, size=320))


@pytest.fixture
def trainer(base: BaseModel) -> DiffusionTrainer:
    return DiffusionTrainer(base, decode, "cpu", preview_steps=PREVIEW_STEPS)
