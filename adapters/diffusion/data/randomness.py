"""All randomness of a run, as a function of the seed and the position in the run.

Nothing is drawn from a generator that outlives the draw. A run can thus go on from any step
without the state of a generator, and previews or evaluations cannot shift what comes after.
Draws are made on the CPU: they are the same whatever device trains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from domain.parameters import TrainingParameters

Batch = tuple[int, ...]
"""Positions of the images that one step trains on, all of one bucket."""


def generator_for(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A generator that depends on nothing but the arguments."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def steps_per_epoch(buckets: Sequence[Sequence[int]], batch_size: int) -> int:
    """Steps in each epoch: a bucket's last batch may be smaller than the others."""
    return sum(-(-len(bucket) // batch_size) for bucket in buckets)


def epoch_batches(
    buckets: Sequence[Sequence[int]], batch_size: int, seed: int, epoch: int
) -> list[Batch]:
    """One epoch's batches in order: every image once, the batches of all buckets mixed."""
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
class StepDraw:
    """What chance decides for one step of ``n`` images. Tensors are on the CPU."""

    noise: torch.Tensor
    """(n, c, h, w): standard normal, the noise offset added."""
    posterior: torch.Tensor
    """(n, c, h, w): standard normal, picks a sample of the autoencoder's posterior."""
    timesteps: torch.Tensor
    """(n,): uniform over the noise schedule."""
    mirrored: tuple[bool, ...]
    uncaptioned: tuple[bool, ...]
    """Which images train on the empty caption."""


def draw_step(
    parameters: TrainingParameters, step: int, shape: tuple[int, int, int, int], timesteps: int
) -> StepDraw:
    """Draw for one step of the run.

    The noise offset adds ``noise_offset * N(0, 1)``, one value per image and channel, to the
    noise ("Diffusion With Offset Noise", Guttenberg 2023), which lets the model learn
    images that are dark or bright as a whole.

    Args:
        step: counted from 0 over the whole run.
        shape: (n, c, h, w) of the step's latents.
        timesteps: length of the noise schedule.
    """
    count, channels = shape[:2]
    generator = generator_for(parameters.seed, "step", step)
    noise = torch.randn(shape, generator=generator)
    posterior = torch.randn(shape, generator=generator)
    moments = torch.randint(timesteps, (count,), generator=generator)
    mirrored, uncaptioned = torch.rand((2, count), generator=generator).tolist()
    if parameters.noise_offset:
        offset = torch.randn((count, channels, 1, 1), generator=generator)
        noise += parameters.noise_offset * offset
    return StepDraw(
        noise=noise,
        posterior=posterior,
        timesteps=moments,
        mirrored=tuple(parameters.random_flip and chance < 0.5 for chance in mirrored),
        uncaptioned=tuple(chance < parameters.caption_dropout for chance in uncaptioned),
    )
