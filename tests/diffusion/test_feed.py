"""What steps train on is drawn ahead, many at a time, and is nobody's but the step's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters.diffusion.data import feed as feed_module
from adapters.diffusion.data.dataset import EncodedDataset, EncodedImage
from adapters.diffusion.data.feed import Feed
from adapters.diffusion.data.rng import epoch_batches, sample_step_noise
from domain.parameters import TrainingParameters

SQUARE, WIDE = (64, 64), (80, 48)
SIZES = [SQUARE, WIDE, SQUARE, WIDE, SQUARE, SQUARE, WIDE, SQUARE]
PARAMETERS = TrainingParameters(
    epochs=2, resolution=64, batch_size=2, random_flip=True, caption_dropout=0.5
)
EPOCH = 5
"""Steps: of the five squares three, of the three wide ones two."""
NUMBERS = 2 * (2 * 4 * 8 * 8) + 4 + 2 * (4 * 6 * 10) + 4
"""Drawn for the first two steps: a pair of squares and a wide one."""


def dataset() -> EncodedDataset:
    images = tuple(
        EncodedImage(size, *torch.zeros(2, 2, 4, size[1] // 8, size[0] // 8)) for size in SIZES
    )
    return EncodedDataset(images, torch.zeros(4, 77, 8), (1, 2, 3, 1, 2, 3, 1, 2), 0.18)


@pytest.mark.parametrize(
    ("steps", "numbers", "at_once"),
    [(64, 2**24, EPOCH), (3, 2**24, 3), (64, NUMBERS, 2), (64, NUMBERS - 1, 1), (64, 1, 1)],
)
def test_a_step_gets_what_is_drawn_for_it_however_many_are_drawn_at_a_time(
    monkeypatch: pytest.MonkeyPatch, steps: int, numbers: int, at_once: int
) -> None:
    drawn: list[int] = []

    def noted(parameters: TrainingParameters, step: int, *rest: Any) -> Any:
        drawn.append(step)
        return sample_step_noise(parameters, step, *rest)

    monkeypatch.setattr(feed_module, "sample_step_noise", noted)
    monkeypatch.setattr(feed_module, "MOST_STEPS", steps)
    monkeypatch.setattr(feed_module, "MOST_NUMBERS", numbers)
    own = dataset()
    buckets = list(own.buckets.values())
    feed = Feed(PARAMETERS, own, buckets, lambda step: step / 8, 1000, torch.device("cpu"))
    feed.prepare(0)
    assert drawn == list(range(at_once))
    for step in range(2 * EPOCH):
        batch = epoch_batches(buckets, 2, PARAMETERS.seed, step // EPOCH)[step % EPOCH]
        draw = sample_step_noise(PARAMETERS, step, own.shape(batch), 1000)
        inputs = feed.inputs(step)
        assert (inputs.size, inputs.shape) == (SIZES[batch[0]], own.shape(batch))
        assert torch.equal(inputs.noise, draw.noise)
        assert torch.equal(inputs.posterior, draw.vae_noise)
        assert inputs.indices.tolist() == [
            draw.timesteps.tolist(),
            own.rows(batch, draw.flipped),
            own.rows_of_captions(batch, draw.caption_dropped),
        ]
        assert inputs.rate == inputs.learning_rate == step / 8
    assert drawn == list(range(2 * EPOCH))
