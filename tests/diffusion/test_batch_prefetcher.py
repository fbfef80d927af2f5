"""Batches are prefetched, several at a time, and each belongs to one step only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from adapters.diffusion.data import batch_prefetcher
from adapters.diffusion.data.batch_prefetcher import BatchPrefetcher
from adapters.diffusion.data.dataset import EncodedDataset
from adapters.diffusion.data.rng import epoch_batches, sample_step_noise
from adapters.diffusion.objective import objective_of
from domain.parameters import TrainingParameters

SQUARE, WIDE = (64, 64), (80, 48)
SIZES = [SQUARE, WIDE, SQUARE, WIDE, SQUARE, SQUARE, WIDE, SQUARE]
PARAMETERS = TrainingParameters(
    epochs=2, resolution=64, batch_size=2, random_flip=True, caption_dropout=0.5
)
EPOCH = 5
"""Steps per epoch: three of the five square images, two of the three wide ones."""
NUMBERS = 2 * (2 * 4 * 8 * 8) + 2 * (4 * 6 * 10)
"""Batches of the first two steps: two square images, then a wide one."""
SLOT = torch.tensor([3])


def dataset() -> EncodedDataset:
    draw = torch.Generator().manual_seed(0)

    def posterior(width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
        views = 2 * SIZES.count((width, height))
        mean, std = torch.randn(2, views, 4, height // 8, width // 8, generator=draw)
        return mean, std

    posteriors = {size: posterior(*size) for size in (SQUARE, WIDE)}
    first_views = tuple(2 * SIZES[:i].count(size) for i, size in enumerate(SIZES))
    captions = (1, 2, 3, 1, 2, 3, 1, 2)
    return EncodedDataset(
        tuple(SIZES), posteriors, first_views, torch.zeros(4, 77, 8), captions, 0.18
    )


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

    monkeypatch.setattr(batch_prefetcher, "sample_step_noise", noted)
    monkeypatch.setattr(batch_prefetcher, "MAX_STEPS", steps)
    monkeypatch.setattr(batch_prefetcher, "MAX_NUMBERS", numbers)
    own, schedule = dataset(), DDPMScheduler(beta_schedule="scaled_linear")
    buckets = list(own.buckets.values())
    objective = objective_of(schedule, 5.0, torch.device("cpu"))
    captions = torch.arange(4.0)[:, None, None].expand(4, 77, 8)
    batches = BatchPrefetcher(PARAMETERS, own, buckets, objective, captions, SLOT)
    batches.prefetch(0)
    assert len(drawn) == at_once
    for step in range(2 * EPOCH):
        images = epoch_batches(buckets, 2, PARAMETERS.seed, step // EPOCH)[step % EPOCH]
        draw = sample_step_noise(PARAMETERS, step, own.shape(images), 1000)
        rows = torch.tensor(own.rows(images, draw.flipped))
        latents = own.sample(own.sizes[images[0]], rows, draw.vae_noise)
        batch = batches.batch(step)
        assert batches.shape(step) == batch.noisy_latents.shape == own.shape(images)
        wanted = schedule.add_noise(latents, draw.noise, draw.timesteps)
        torch.testing.assert_close(batch.noisy_latents, wanted)
        assert torch.equal(batch.target, draw.noise)
        assert torch.equal(batch.timesteps, draw.timesteps)
        assert torch.equal(batch.loss_weights, objective.weight[draw.timesteps])
        texts = own.rows_of_captions(images, draw.caption_dropped)
        assert batch.conditioning[:, 0, 0].tolist() == texts
        assert batch.loss_scales.tolist() == [1 / len(images)]
        assert torch.equal(batch.slots, SLOT)
    assert sorted(drawn) == list(range(2 * EPOCH))
