"""How well a style file fits images of the style that were not used in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.dataset import EncodedDataset, encode_dataset
from adapters.diffusion.objective import objective_of
from adapters.images.decode import decode
from benchmarks.full_size import pipeline_of
from domain.image import TrainingImage

CPU = torch.device("cpu")


def encode_held_out(base: BaseModel, images: Sequence[TrainingImage]) -> EncodedDataset:
    """Squares at the base's own resolution, with their captions."""
    size = (base.native_resolution,) * 2
    decoded_images = [(decode(image.data), size) for image in images]
    captions = [image.caption or "" for image in images]
    return encode_dataset(base, decoded_images, captions, flipped=False, device=CPU)


@torch.no_grad()
def held_out_loss(
    base: BaseModel, style: Path | None, dataset: EncodedDataset, timesteps: Sequence[int]
) -> float:
    """Mean loss over every image at every timestep, always with the same noises.

    Args:
        style: the trained file, loaded as users load it; None for the base model.
    """
    pipeline = pipeline_of(base)
    if style is not None:
        pipeline.load_lora_weights(style)
    try:
        return _loss(base, dataset, timesteps)
    finally:
        pipeline.unload_lora_weights()


def _loss(base: BaseModel, dataset: EncodedDataset, timesteps: Sequence[int]) -> float:
    objective = objective_of(base.noise_schedule, None, CPU)
    batch = tuple(range(len(dataset.sizes)))
    generator = torch.Generator().manual_seed(20)
    latents = dataset.latents(
        batch, [False] * len(batch), torch.randn(dataset.shape(batch), generator=generator)
    )
    states = dataset.captions[dataset.rows_of_captions(batch, [False] * len(batch))]
    losses = []
    for timestep in timesteps:
        noise = torch.randn(latents.shape, generator=generator)
        moments = torch.full((len(batch),), timestep)
        noisy = objective.add_noise(latents, noise, moments)
        prediction = base.unet(noisy, moments, encoder_hidden_states=states).sample
        target = objective.target(latents, noise, moments)
        losses.append((prediction - target).square().mean())
    return float(torch.stack(losses).mean())
