"""Train the small UNet and text encoder on plain scenes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel, compute_snr
from torch import Tensor

from assets.pool import Pixels
from assets.train_autoencoder import to_batch

_BATCH_SIZE = 16
_LEARNING_RATE = 1.5e-3
_CAPTION_DROPOUT = 0.1
_EMA_DECAY = 0.998
_SNR_GAMMA = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatentBucket:
    """Encoded pictures of one size."""

    latents: Tensor
    """(count, 4, h, w), not yet scaled."""
    tokens: Tensor
    """(count, 77) token ids of the captions."""


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Pixels) -> Tensor:
    """Encode pictures to the posterior's means, (count, 4, h, w), unscaled."""
    parts = np.array_split(pictures, max(1, len(pictures) // 32))
    return torch.cat([vae.encode(to_batch(part)).latent_dist.mean for part in parts])


def train_denoiser(
    pipeline: StableDiffusionPipeline,
    buckets: Sequence[LatentBucket],
    steps: int,
    generator: torch.Generator,
) -> None:
    """Minimise the error of the predicted noise, weighted by Min-SNR (arXiv:2303.09556).

    A batch is of one bucket, chosen in proportion to the buckets' counts. A tenth of the
    captions are empty, for classifier-free guidance (arXiv:2207.12598). What is left in the
    pipeline at the end is the exponential moving average of the weights.
    """
    unet, text_encoder = pipeline.unet, pipeline.text_encoder
    noise_schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    scaling = pipeline.vae.config.scaling_factor
    empty = tokenize(pipeline, [""])
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=1e-3)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 40, steps)
    average = EMAModel(parameters, decay=_EMA_DECAY)
    counts = torch.tensor([float(len(bucket.latents)) for bucket in buckets])
    unet.train()
    text_encoder.train()
    recent = 0.0
    for step in range(steps):
        bucket = buckets[int(torch.multinomial(counts, 1, generator=generator))]
        chosen = torch.randint(len(bucket.latents), (_BATCH_SIZE,), generator=generator)
        latents = bucket.latents[chosen] * scaling
        dropped = torch.rand(_BATCH_SIZE, 1, generator=generator) < _CAPTION_DROPOUT
        states = text_encoder(torch.where(dropped, empty, bucket.tokens[chosen]))[0]
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(1000, (_BATCH_SIZE,), generator=generator)
        noisy = noise_schedule.add_noise(latents, noise, timesteps)
        error = unet(noisy, timesteps, states).sample - noise
        snr = compute_snr(noise_schedule, timesteps)
        loss = (error.pow(2).mean(dim=(1, 2, 3)) * snr.clamp(max=_SNR_GAMMA) / snr).mean()
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
    average.copy_to(parameters)
    unet.eval()
    text_encoder.eval()


def tokenize(pipeline: StableDiffusionPipeline, captions: Sequence[str]) -> Tensor:
    """Encode captions to (count, 77) token ids, padded as the pipeline pads."""
    tokens: Tensor = pipeline.tokenizer(
        list(captions), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return tokens
