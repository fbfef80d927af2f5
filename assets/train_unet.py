"""Train the small UNet on plain scenes, with captions encoded by a finished text encoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel, compute_snr
from torch import Tensor

from assets.pool import Pixels
from assets.train_autoencoder import to_batch

_BATCH_SIZE = 32
_LEARNING_RATE = 2e-3
_CAPTION_DROPOUT = 0.1
_EMA_DECAY = 0.998
_MIN_WEIGHT, _MAX_WEIGHT = 0.5, 10.0
_SNAPSHOT_EVERY = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatentBucket:
    """Encoded images of one size."""

    latents: Tensor
    """(count, 4, h, w), not yet scaled."""
    states: Tensor
    """(count, 77, width): the captions' text encoder states."""


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own images."""

    buckets: Sequence[LatentBucket]
    steps: int


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Pixels) -> Tensor:
    """Encode images to the posterior's means, (count, 4, h, w), unscaled."""
    parts = np.array_split(images, max(1, len(images) // 32))
    return torch.cat([vae.encode(to_batch(part)).latent_dist.mean for part in parts])


@torch.no_grad()
def encode_captions(pipeline: StableDiffusionPipeline, captions: Sequence[str]) -> Tensor:
    """Encode captions to (count, 77, width) states."""
    parts = tokenize(pipeline, captions).split(64)
    return torch.cat([pipeline.text_encoder(part)[0] for part in parts])


def tokenize(pipeline: StableDiffusionPipeline, captions: Sequence[str]) -> Tensor:
    """Encode captions to (count, 77) token ids, padded as the pipeline pads."""
    tokens: Tensor = pipeline.tokenizer(
        list(captions), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return tokens


def train_unet(
    pipeline: StableDiffusionPipeline,
    stages: Sequence[Stage],
    generator: torch.Generator,
    snapshots: Path | None = None,
) -> None:
    """Minimise the error of the predicted noise, stage after stage under one learning rate.

    A batch comes from one bucket, chosen in proportion to the buckets' counts. A tenth of the
    captions are empty, for classifier-free guidance (arXiv:2207.12598). At the end the pipeline
    holds the exponential moving average of the weights.

    Args:
        snapshots: a folder for the average every 500 steps, for inspection.
    """
    unet = pipeline.unet
    course = [stage.buckets for stage in stages for _ in range(stage.steps)]
    steps = len(course)
    noise_schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    weights = timestep_weights(noise_schedule)
    scaling = pipeline.vae.config.scaling_factor
    empty = encode_captions(pipeline, [""])
    parameters = list(unet.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=1e-3)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 40, steps)
    average = EMAModel(parameters, decay=_EMA_DECAY)
    unet.train()
    recent = 0.0
    for step, buckets in enumerate(course):
        bucket = _choose(buckets, generator)
        chosen = torch.randint(len(bucket.latents), (_BATCH_SIZE,), generator=generator)
        latents = bucket.latents[chosen] * scaling
        dropped = torch.rand(_BATCH_SIZE, 1, 1, generator=generator) < _CAPTION_DROPOUT
        states = torch.where(dropped, empty, bucket.states[chosen])
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(len(weights), (_BATCH_SIZE,), generator=generator)
        noisy = noise_schedule.add_noise(latents, noise, timesteps)
        error = unet(noisy, timesteps, states).sample - noise
        loss = (error.pow(2).mean(dim=(1, 2, 3)) * weights[timesteps]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average.step(parameters)
        plain = float(error.detach().pow(2).mean())
        recent = plain if step == 0 else 0.98 * recent + 0.02 * plain
        if step % 100 == 0 or step == steps - 1:
            logger.info("unet step %d/%d: loss %.4f (moving average)", step, steps, recent)
        if snapshots is not None and step and step % _SNAPSHOT_EVERY == 0:
            average.store(parameters)
            average.copy_to(parameters)
            unet.save_pretrained(snapshots / f"unet_{step}")
            average.restore(parameters)
    average.copy_to(parameters)
    unet.eval()


def timestep_weights(noise_schedule: DDPMScheduler) -> Tensor:
    """Weigh each timestep's loss by 1 / sqrt(SNR) (arXiv:2310.08442), within bounds; mean 1.

    Layout and colours are decided at strong noise. There the plain loss is small even if the image
    is wrong, although the caption determines the right one.
    """
    snr = compute_snr(noise_schedule, torch.arange(noise_schedule.config.num_train_timesteps))
    weights = (1 / snr.sqrt()).clamp(_MIN_WEIGHT, _MAX_WEIGHT)
    return weights / weights.mean()


def _choose(buckets: Sequence[LatentBucket], generator: torch.Generator) -> LatentBucket:
    counts = torch.tensor([float(len(bucket.latents)) for bucket in buckets])
    return buckets[int(torch.multinomial(counts, 1, generator=generator))]
