"""The random numbers of a run, as functions of the seed and the step number.

No generator is kept between steps. A run resumes at any step without a generator state, and
previews or evaluations do not change the numbers of later steps. Everything is sampled on the
CPU, so the numbers are the same on every training device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from domain.parameters import TrainingParameters

ImageBatch = tuple[int, ...]
"""Indices of the images in one training batch, all from one bucket."""


def generator_for(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A new generator, seeded by the arguments alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def steps_per_epoch(buckets: Sequence[Sequence[int]], batch_size: int) -> int:
    """Number of batches in each epoch. The last batch of a bucket may be smaller."""
    return sum(-(-len(bucket) // batch_size) for bucket in buckets)


def epoch_batches(
    buckets: Sequence[Sequence[int]], batch_size: int, seed: int, epoch: int
) -> list[ImageBatch]:
    """The batches of one epoch, shuffled: every image once, the buckets mixed."""
    generator = generator_for(seed, "order", epoch)
    batches = []
    for bucket in buckets:
        order = torch.randperm(len(bucket), generator=generator).tolist()
        shuffled = [bucket[position] for position in order]
        batches += [
            tuple(shuffled[start : start + batch_size])
            for start in range(0, len(shuffled), batch_size)
        ]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


@dataclass(frozen=True)
class StepNoise:
    """The random choices of one training step with n images. Tensors are on the CPU."""

    noise: torch.Tensor
    """(n, c, h, w), standard normal plus the noise offset."""
    vae_noise: torch.Tensor
    """(n, c, h, w), standard normal: latents are sampled as ``mean + std * vae_noise``."""
    timesteps: torch.Tensor
    """(n,), uniform over the noise schedule."""
    flipped: tuple[bool, ...]
    caption_dropped: tuple[bool, ...]
    """Images whose caption is replaced by the empty one (caption dropout)."""
    caption_variants: tuple[int, ...] = ()
    """A number for each image that chooses among its caption's variants, if there are any."""


def sample_step_noise(
    parameters: TrainingParameters, step: int, shape: tuple[int, int, int, int], timesteps: int
) -> StepNoise:
    """Sample the random choices of one training step.

    The noise offset adds ``noise_offset * N(0, 1)``, one value per image and channel, to the
    noise ("Diffusion With Offset Noise", Guttenberg 2023). With it the model also learns
    images that are very dark or very bright.

    Args:
        step: number of the step, from 0 over the whole run.
        shape: (n, c, h, w) of the batch's latents.
        timesteps: length of the noise schedule.
    """
    count, channels = shape[:2]
    generator = generator_for(parameters.seed, "step", step)
    noise = torch.randn(shape, generator=generator)
    vae_noise = torch.randn(shape, generator=generator)
    chosen = torch.randint(timesteps, (count,), generator=generator)
    flip, drop = torch.rand((2, count), generator=generator).tolist()
    if parameters.noise_offset:
        offset = torch.randn((count, channels, 1, 1), generator=generator)
        noise += parameters.noise_offset * offset
    variants = torch.randint(2**31, (count,), generator=generator).tolist()
    return StepNoise(
        noise=noise,
        vae_noise=vae_noise,
        timesteps=chosen,
        flipped=tuple(parameters.random_flip and chance < 0.5 for chance in flip),
        caption_dropped=tuple(chance < parameters.caption_dropout for chance in drop),
        caption_variants=tuple(variants),
    )
