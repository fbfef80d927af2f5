"""The scores of previews on images with known style strength and content."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.preview import request_previews
from adapters.diffusion.style_measures import (
    encode_previews,
    encoder_statistics,
    faithfulness,
    style_axis,
)
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from assets.style_dial import CONTENTS
from benchmarks.style_measures import drawings, rank_correlation
from domain.image import TrainingImage
from domain.parameters import TrainingParameters
from tests.diffusion.runs import drive, plan_of

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")


def test_closeness_ranks_sets_by_style_strength_whatever_their_content(
    base: BaseModel,
) -> None:
    """Compare each set with the base's images of the same prompts, as a run does."""
    artist, _ = encode_previews(base, drawings(1.0, 12, seed=1), CPU)
    strengths = np.random.default_rng(3).uniform(0, 1, 15)
    found = []
    for n, (strength, content) in enumerate(zip(strengths, 3 * list(CONTENTS), strict=True)):
        styled, plain = (
            encode_previews(base, drawings(share, 4, 50 + n, content), CPU)[0]
            for share in (strength, 0.0)
        )
        found.append(style_axis(artist, plain).closeness(styled))
    assert rank_correlation(strengths, found) >= 0.9


def test_closeness_is_1_at_the_artists_mean_and_0_at_the_bases() -> None:
    generator = torch.Generator().manual_seed(0)
    artist = torch.randn(8, 5, generator=generator) + 3
    plain = torch.randn(6, 5, generator=generator)
    axis = style_axis(artist, plain)
    assert axis.closeness(artist) == pytest.approx(1, abs=1e-4)
    assert axis.closeness(plain) == pytest.approx(0, abs=1e-4)
    beyond = 2 * artist.mean(0) - plain.mean(0)
    assert axis.closeness(beyond[None]) == pytest.approx(0, abs=1e-4)
    assert axis.closeness(artist * 100) < 0


def test_faithfulness_distinguishes_right_prompts_from_wrong_ones(base: BaseModel) -> None:
    previews = drawings(0.3, 6, seed=7)
    _, latents = encode_previews(base, previews, CPU)
    captions = [preview.prompt for preview in previews]

    def share(prompts: list[str]) -> float:
        parameters = TrainingParameters(epochs=1, resolution=128, sample_prompts=tuple(prompts))
        return faithfulness(base, latents, request_previews(base, parameters, (), CPU), CPU)

    assert share(captions) >= 0.9
    assert share(captions[1:] + captions[:1]) <= 0.6


def test_statistics_are_collected_only_in_the_with_block(base: BaseModel) -> None:
    pixels = torch.zeros(2, 3, 64, 64)
    with encoder_statistics(base.vae) as batches:
        base.vae.encode(pixels)
        base.vae.encode(pixels[:1])
    base.vae.encode(pixels)
    assert [len(batch) for batch in batches] == [2, 1]
    assert torch.allclose(batches[0][:1], batches[1], atol=1e-4)


def test_scoring_a_run_does_not_change_it(
    base: BaseModel, images: tuple[TrainingImage, ...]
) -> None:
    plan = plan_of(images[:3], epochs=2, sample_prompts=("a red circle", "a blue star"))
    trainer = DiffusionTrainer(base, decode, preview_steps=2)
    with trainer.open(plan, None) as session:
        drive(session)
        undisturbed = session.weights()
    with trainer.open(plan, None) as session:
        session.advance()
        scores = session.score_previews(session.previews(with_lora=True))
        assert scores is not None
        assert 0 <= scores.faithfulness <= 1
        plain = session.score_previews(session.previews(with_lora=False))
        assert plain is not None
        assert plain.closeness == pytest.approx(0, abs=1e-3)
        drive(session)
        assert session.weights() == undisturbed
