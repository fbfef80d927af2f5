from __future__ import annotations

from io import BytesIO

import pytest
import torch
from PIL import Image

from adapters.diffusion.base_model import BaseModel
from adapters.diffusion.preview import preview_prompts, request_previews
from adapters.diffusion.trainer import DiffusionTrainer
from domain.parameters import TrainingParameters
from domain.picture import Picture
from tests.diffusion.runs import plan_of

pytestmark = pytest.mark.integration


def parameters(**values: object) -> TrainingParameters:
    return TrainingParameters(**{"epochs": 1, "resolution": 64, **values})


def test_prompts_are_those_asked_for() -> None:
    asked = parameters(sample_prompts=("a fox",))
    assert preview_prompts(asked, ["a", "b"]) == ("a fox",)


def test_else_the_first_four_captions_that_differ() -> None:
    captions = ["a", "b", "a", "c", "d", "e"]
    assert preview_prompts(parameters(), captions) == ("a", "b", "c", "d")


def test_previews_are_not_larger_than_the_base_can_compose(base: BaseModel) -> None:
    cpu = torch.device("cpu")
    assert request_previews(base, parameters(resolution=64), ["a"], cpu).side == 64
    assert request_previews(base, parameters(resolution=512), ["a"], cpu).side == 128


def test_previews_are_repeatable_pngs_that_touch_no_global_generator(
    trainer: DiffusionTrainer, pictures: tuple[Picture, ...]
) -> None:
    plan = plan_of(pictures[:2], sample_prompts=("a red circle",), seed=5)
    with trainer.open(plan, None) as session:
        state = torch.random.get_rng_state()
        first = session.previews(adapted=True)
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.rand(10)
        assert session.previews(adapted=True) == first
        # Fresh adapters add nothing yet.
        assert session.previews(adapted=False) == first
    assert [(preview.prompt, preview.seed) for preview in first] == [("a red circle", 5)]
    image = Image.open(BytesIO(first[0].png))
    assert (image.format, image.size) == ("PNG", (64, 64))
