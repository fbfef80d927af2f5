"""Train the small autoencoder on scenes and textures."""

from __future__ import annotations

import logging

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor

from assets.pool import Pixels

_CROP = 64
_PIXELS_PER_STEP = 16 * _CROP**2
_LEARNING_RATE = 2e-3
_KL_WEIGHT = 3e-4
_EDGE_WEIGHT = 0.5

logger = logging.getLogger(__name__)


def train_autoencoder(
    vae: AutoencoderKL, images: Pixels, steps: int, rng: np.random.Generator
) -> None:
    """Minimise the error of colours and of edges, plus a small KL divergence.

    The first three quarters train on crops, which are fast; the rest on whole images, so that the
    statistics of group norms and attention are those of inference.
    """
    vae.train()
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=_LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.99)
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 40, steps)
    for step in range(steps):
        side = _CROP if step < steps * 0.75 else images.shape[1]
        batch = _batch(images, side, rng)
        posterior = vae.encode(batch).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        colour = (decoded - batch).abs().mean()
        loss = colour + (decoded - batch).pow(2).mean()
        loss = loss + _EDGE_WEIGHT * _edge_error(decoded, batch)
        loss = loss + _KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            logger.info("vae step %d/%d: loss %.4f, L1 %.4f", step, steps, loss, colour)
    vae.eval()


def to_batch(pixels: Pixels) -> Tensor:
    """Turn images (count, height, width, 3) into floats (count, 3, height, width) in [-1, 1]."""
    batch = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return batch.to(torch.float32) / 127.5 - 1


def _batch(images: Pixels, side: int, rng: np.random.Generator) -> Tensor:
    indices = rng.integers(len(images), size=_PIXELS_PER_STEP // side**2)
    corners = rng.integers(images.shape[1] - side + 1, size=(len(indices), 2))
    crops = [
        images[index, top : top + side, left : left + side]
        for index, (top, left) in zip(indices, corners, strict=True)
    ]
    return to_batch(np.stack(crops))


def _edge_error(decoded: Tensor, batch: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbouring pixels, which penalises blur."""
    error = decoded - batch
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return across + down
