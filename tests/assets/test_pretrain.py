"""Pretraining is deterministic, and each stage trains only its model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import assets
from assets.architecture import build_pipeline
from assets.drawing import Scene, compose_scene, describe
from assets.train_text_encoder import train_text_encoder
from assets.train_unet import (
    LatentBucket,
    Stage,
    encode_captions,
    timestep_weights,
    tokenize,
    train_unet,
)
from assets.vocabulary import write_vocabulary

pytestmark = [pytest.mark.integration, pytest.mark.long]

VOCABULARY = Path(assets.__file__).parent / "small_base" / "tokenizer"


@pytest.fixture
def pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    return build_pipeline(VOCABULARY)


@pytest.fixture
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [compose_scene(rng) for _ in range(40)]


def _weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _train(pipeline: StableDiffusionPipeline, seed: int) -> torch.Tensor:
    states = encode_captions(pipeline, ["a red circle", "a blue star", "a ring", "a cross"])
    generator = torch.Generator().manual_seed(1)
    small, full = (
        LatentBucket(torch.randn(4, 4, side, side, generator=generator), states) for side in (4, 8)
    )
    before = _weights(pipeline.unet).clone()
    stages = [Stage([small], 2), Stage([full], 2)]
    train_unet(pipeline, stages, torch.Generator().manual_seed(seed))
    return _weights(pipeline.unet) - before


def test_the_unet_learns_in_every_stage_reproducibly(
    pipeline: StableDiffusionPipeline,
) -> None:
    start = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    first = _train(pipeline, seed=3)
    pipeline.unet.load_state_dict(start)
    again = _train(pipeline, seed=3)
    pipeline.unet.load_state_dict(start)
    other = _train(pipeline, seed=4)
    assert first.abs().max() > 0
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_the_unet_changes_nothing_else(pipeline: StableDiffusionPipeline) -> None:
    before = _weights(pipeline.text_encoder).clone(), _weights(pipeline.vae).clone()
    _train(pipeline, seed=3)
    assert torch.equal(_weights(pipeline.text_encoder), before[0])
    assert torch.equal(_weights(pipeline.vae), before[1])


def test_high_noise_timesteps_weigh_more(pipeline: StableDiffusionPipeline) -> None:
    from diffusers import DDPMScheduler

    weights = timestep_weights(DDPMScheduler.from_config(pipeline.scheduler.config))
    assert weights.shape == (1000,)
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-5)
    assert bool((weights.diff() >= 0).all())
    assert weights[900] > 5 * weights[100]


def test_the_text_encoder_learns_to_distinguish_captions(
    pipeline: StableDiffusionPipeline, scenes: list[Scene], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "assets.train_text_encoder")
    tokens = tokenize(pipeline, [describe(scene) for scene in scenes])
    generator = torch.Generator().manual_seed(0)
    train_text_encoder(pipeline.text_encoder, tokens, scenes, 40, generator)
    first, last = (float(record.getMessage().split()[-1]) for record in caplog.records)
    assert last < 0.7 * first


def test_the_vocabulary_is_deterministic_and_has_whole_words(tmp_path: Path) -> None:
    captions = ["a small red circle", "a Large red ring"]
    folders = [tmp_path / "first", tmp_path / "again"]
    sizes = [
        write_vocabulary(order, folder)
        for order, folder in zip((captions, captions[::-1]), folders, strict=True)
    ]
    first, again = ((folder / "vocab.json").read_bytes() for folder in folders)
    assert first == again
    vocabulary = json.loads(first)
    assert sizes == [len(vocabulary)] * 2
    assert {"small</w>", "red</w>", "circle</w>", "large</w>", "ring</w>"} <= vocabulary.keys()
