from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.preview import (
    PreviewRequest,
    latents_of,
    preview_pipeline,
    preview_prompts,
    request_previews,
)
from adapters.diffusion.trainer import DiffusionTrainer
from application.stop_signal import Stopped, StopReason, StopSignal
from domain.image import TrainingImage
from domain.parameters import TrainingParameters
from tests.diffusion.runs import plan_of

pytestmark = pytest.mark.integration


def parameters(**values: Any) -> TrainingParameters:
    return TrainingParameters(**{"epochs": 1, "resolution": 64, **values})


SUBJECTS = ("a portrait of a woman", "a street in a town")


@pytest.mark.parametrize(
    ("requested", "captions", "prompts"),
    [
        (("a fox",), ["a", "b"], ("a fox",)),
        (("a fox",), ["ink"] * 3, ("a fox",)),
        ((), ["a", "b", "a", "c", "d", "e"], ("a", "b", "c", "d")),
        ((), ["ink, art"] * 3, ("ink, art", *(f"{subject}, ink, art" for subject in SUBJECTS))),
        ((), ["", ""], ("", *SUBJECTS)),
    ],
)
def test_prompts_are_those_requested_or_captions_and_other_subjects(
    requested: tuple[str, ...], captions: list[str], prompts: tuple[str, ...]
) -> None:
    assert preview_prompts(parameters(sample_prompts=requested), captions) == prompts


def test_previews_are_not_larger_than_the_base_models_resolution(base: BaseModel) -> None:
    cpu = torch.device("cpu")
    assert request_previews(base, parameters(resolution=64), ["a"], cpu).side == 64
    assert request_previews(base, parameters(resolution=512), ["a"], cpu).side == 128


def test_previews_are_repeatable_pngs_that_touch_no_global_generator(
    trainer: DiffusionTrainer, images: tuple[TrainingImage, ...]
) -> None:
    plan = plan_of(images[:2], sample_prompts=("a red circle",), seed=5)
    with trainer.open(plan, None) as session:
        state = torch.random.get_rng_state()
        first = session.previews(with_lora=True)
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.rand(10)
        assert session.previews(with_lora=True) == first
        # Fresh adapters add nothing yet.
        assert session.previews(with_lora=False) == first
    assert [(preview.prompt, preview.seed) for preview in first] == [("a red circle", 5)]
    image = Image.open(BytesIO(first[0].png))
    assert (image.format, image.size) == ("PNG", (64, 64))


def test_a_stop_ends_the_drawing_after_the_current_step(
    trainer: DiffusionTrainer, images: tuple[TrainingImage, ...]
) -> None:
    stop, steps = StopSignal(), []

    def check() -> None:
        steps.append(1)
        if len(steps) == 3:
            stop.request(StopReason.SHUTDOWN)
        stop.check()

    plan = plan_of(images[:2], sample_prompts=("a red circle", "a blue square"))
    with trainer.open(plan, None) as session:
        undisturbed = session.previews(with_lora=True)
        with pytest.raises(Stopped):
            session.previews(with_lora=True, check=check)
        assert len(steps) == 3
        assert session.previews(with_lora=True) == undisturbed


@pytest.fixture
def three(base: BaseModel) -> PreviewRequest:
    requested = parameters(sample_prompts=("a red circle", "a fox", "blue waves"), seed=5)
    return request_previews(base, requested, [], torch.device("cpu"), steps=5)


@torch.no_grad()
def test_prompts_drawn_together_give_what_each_gives_alone(
    base: BaseModel, three: PreviewRequest
) -> None:
    pipeline = preview_pipeline(base)
    alone = torch.cat([latents_of(pipeline, one) for one in three.each()])
    torch.testing.assert_close(latents_of(pipeline, three), alone, rtol=0, atol=1e-2)
    # Far closer than two prompts are to one another.
    assert (alone[0] - alone[1]).abs().max() > 1


@torch.no_grad()
def test_where_memory_is_short_prompts_are_drawn_one_by_one(
    base: BaseModel, three: PreviewRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = preview_pipeline(base)
    forward, passes = base.unet.forward, []

    def limited(sample: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        if len(sample) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        passes.append(len(sample))
        return forward(sample, *arguments, **keywords)

    monkeypatch.setattr(base.unet, "forward", limited)
    assert len(latents_of(pipeline, three)) == 3
    # Classifier-free guidance: each prompt is paired with the empty one.
    assert passes == [2] * 3 * 5
