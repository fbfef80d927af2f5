"""Prepare each step's batch ahead of time, so that the device never waits for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch

from adapters.diffusion.data.dataset import EncodedDataset, Size
from adapters.diffusion.data.rng import (
    ImageBatch,
    epoch_batches,
    sample_step_noise,
    steps_per_epoch,
)
from adapters.diffusion.objective import Objective
from adapters.diffusion.train_step import Batch
from domain.parameters import TrainingParameters

MAX_STEPS = 64
"""Maximum number of steps prepared at a time; never beyond the epoch's end."""
MAX_NUMBERS = 2**24
"""Maximum number of float32 values drawn at a time, unless one step takes more: 64 MiB."""


@dataclass(eq=False)
class BatchPrefetcher:
    """Batches by step number.

    Noise and timesteps are a function of the seed and the step, drawn on the CPU. They are copied
    to the device for many steps at once, from pinned memory, without waiting.
    """

    parameters: TrainingParameters
    dataset: EncodedDataset
    buckets: Sequence[Sequence[int]]
    """Positions of the training images, by size."""
    objective: Objective
    conditioning: torch.Tensor
    """The value of ``Batch.conditioning`` for each row of the dataset's ``captions``."""
    slot: torch.Tensor
    """Index of the style's row in the packed LoRA, (1,), on the device."""
    _ready: dict[int, Batch] = field(default_factory=dict, init=False)
    """Here ``Batch.conditioning`` holds row numbers instead of the captions."""

    def batch(self, step: int) -> Batch:
        """The step's batch."""
        self.prefetch(step)
        batch = self._ready[step]
        return replace(batch, conditioning=self.conditioning[batch.conditioning])

    def shape(self, step: int) -> torch.Size:
        """(n, c, h, w) of the step's latents."""
        self.prefetch(step)
        return self._ready[step].noisy_latents.shape

    def prefetch(self, step: int) -> None:
        """Prepare ``step`` and those after it, if not done yet."""
        if step in self._ready:
            return
        size = self.parameters.batch_size
        epoch, position = divmod(step, steps_per_epoch(self.buckets, size))
        batches = epoch_batches(self.buckets, size, self.parameters.seed, epoch)
        batches = batches[position : position + MAX_STEPS]
        drawn = accumulate(2 * math.prod(self.dataset.shape(batch)) for batch in batches)
        count = max(1, sum(total <= MAX_NUMBERS for total in drawn))
        by_size: dict[Size, dict[int, ImageBatch]] = {}
        for number, batch in enumerate(batches[:count], start=step):
            of_size = by_size.setdefault(self.dataset.sizes[batch[0]], {})
            of_size[number] = batch
        self._ready = {}
        for image_size, steps in by_size.items():
            self._ready |= self._prepare(image_size, steps)

    def _prepare(self, size: Size, steps: dict[int, ImageBatch]) -> dict[int, Batch]:
        """The batches of steps whose images all have one size."""
        draws, rows, texts = [], [], []
        length = len(self.objective.weight)
        for step, images in steps.items():
            shape = self.dataset.shape(images)
            draw = sample_step_noise(self.parameters, step, shape, length)
            draws.append(draw)
            rows += self.dataset.rows(images, draw.flipped)
            texts += self.dataset.rows_of_captions(
                images, draw.caption_dropped, draw.caption_variants
            )
        noise = self._send(torch.cat([draw.noise for draw in draws]))
        posterior = self._send(torch.cat([draw.vae_noise for draw in draws]))
        times = torch.cat([draw.timesteps for draw in draws])
        numbers = torch.stack([times, torch.tensor(rows), torch.tensor(texts)])
        timesteps, images_at, texts_at = self._send(numbers)
        latents = self.dataset.sample(size, images_at, posterior)
        whole = Batch(
            noisy_latents=self.objective.add_noise(latents, noise, timesteps),
            timesteps=timesteps,
            conditioning=texts_at,
            target=self.objective.target(latents, noise, timesteps),
            loss_weights=self.objective.weight[timesteps],
            losses=torch.zeros_like(timesteps, dtype=torch.float32),
            loss_scales=torch.ones(1, device=timesteps.device),
            slots=self.slot,
        )
        ends = accumulate(len(batch) for batch in steps.values())
        batches = {}
        for (step, images), end in zip(steps.items(), ends, strict=True):
            part = whole.part(slice(end - len(images), end))
            batches[step] = replace(part, loss_scales=whole.loss_scales / len(images))
        return batches

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        device = self.slot.device
        if device.type != "cuda":
            return tensor.to(device)
        # The allocator keeps pinned memory until the copy from it is done.
        return tensor.pin_memory().to(device, non_blocking=True)
