"""Measure the loss over fixed noises and timesteps, so that measurements are comparable.

An epoch's training loss uses other noises and timesteps each time, which change it more than the
training does. Here only the LoRA changes from one measurement to the next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from adapters.common.device_memory import split_on_oom
from adapters.diffusion.data.dataset import EncodedDataset, Size
from adapters.diffusion.data.rng import generator_for
from adapters.diffusion.objective import Objective
from adapters.diffusion.train_step import Batch, image_losses

if TYPE_CHECKING:
    from adapters.diffusion.training_model import TrainingModel

PREDICTIONS = 16
"""Predictions per measurement of one set of images: about the time of four training steps."""
_PER_PASS_ON_A_CPU = 8
"""Predictions per pass on a CPU. A GPU computes all in one pass, because launching a pass takes
longer than computing a few images. Without gradients, a pass takes less memory than a training
step."""


def held_out_positions(
    groups: Sequence[frozenset[int]], split: float, seed: int
) -> frozenset[int]:
    """Choose the validation images: about the share ``split``, and at least one if that is above
    0 and the images differ. At most half, rounded up, and never all.

    Args:
        groups: for each image the positions of all images with the same content, including its
            own. They are held out together: a duplicate in training would hide overfitting.
    """
    count = len(groups)
    wanted = max(1, round(count * split)) if split else 0
    most = min(count - 1, (count + 1) // 2)
    held: frozenset[int] = frozenset()
    for position in torch.randperm(count, generator=generator_for(seed, "validation")).tolist():
        if len(held) < wanted and len(held | groups[position]) <= most:
            held |= groups[position]
    return held


def trained_buckets(
    buckets: Mapping[Size, Sequence[int]], held_out: Collection[int]
) -> dict[Size, tuple[int, ...]]:
    """The buckets without the held-out images, and without buckets left empty."""
    rest = {
        size: tuple(position for position in bucket if position not in held_out)
        for size, bucket in buckets.items()
    }
    return {size: bucket for size, bucket in rest.items() if bucket}


@dataclass(eq=False)
class Evaluation:
    """Measures one style on training images and on held-out images."""

    model: TrainingModel
    objective: Objective
    dataset: EncodedDataset
    held_out: Collection[int]
    conditioning: torch.Tensor
    """The value of ``Batch.conditioning`` for each row of the dataset's ``captions``."""
    slot: torch.Tensor
    """The style's row of the packed LoRA, (1,), on the device."""
    seed: int

    @cached_property
    def _batches(self) -> tuple[list[Batch], list[Batch]]:
        """Of the training images and of the held-out images; made at the first measurement."""
        trained = [i for i in range(len(self.dataset.sizes)) if i not in self.held_out]
        return self._make_batches(trained), self._make_batches(sorted(self.held_out))

    @torch.no_grad()
    def losses(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The loss of each prediction, of training images and of held-out images; the latter is
        empty if no image is held out. Reads from the device."""
        trained, held_out = self._batches
        return self._measure(trained), self._measure(held_out)

    def _measure(self, batches: Sequence[Batch]) -> tuple[float, ...]:
        losses: list[torch.Tensor] = []
        for batch in batches:
            losses += split_on_oom(self._losses, batch, Batch.halves)
        return tuple(torch.cat(losses).tolist()) if losses else ()

    def _losses(self, batch: Batch) -> torch.Tensor:
        def forward(batch: Batch) -> None:
            with self.model.lora.showing(batch.slots):
                batch.losses.copy_(image_losses(self.model, batch))

        return self.model.evaluation_graphs.run(batch, forward).losses.clone()

    def _make_batches(self, positions: Sequence[int]) -> list[Batch]:
        """Batches of the images in turn, at timesteps spread evenly over the schedule."""
        by_size: dict[Size, list[int]] = {}
        for number in range(PREDICTIONS if positions else 0):
            size = self.dataset.sizes[positions[number % len(positions)]]
            by_size.setdefault(size, []).append(number)
        cpu = self.slot.device.type == "cpu"
        most = _PER_PASS_ON_A_CPU if cpu else PREDICTIONS
        return [
            self._make_batch(numbers[start : start + most], positions)
            for numbers in by_size.values()
            for start in range(0, len(numbers), most)
        ]

    def _make_batch(self, numbers: Sequence[int], positions: Sequence[int]) -> Batch:
        device, steps = self.slot.device, len(self.objective.weight)
        images = tuple(positions[number % len(positions)] for number in numbers)
        timesteps = [int((number + 0.5) / PREDICTIONS * steps) for number in numbers]
        plain = [False] * len(images)
        shape = self.dataset.shape(images)[1:]
        generators = [generator_for(self.seed, "evaluation", number) for number in numbers]
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
        rows = [self.dataset.rows(images, plain), self.dataset.rows_of_captions(images, plain)]
        at, images_at, texts_at = torch.tensor([timesteps, *rows], device=device)
        size = self.dataset.sizes[images[0]]
        latents = self.dataset.sample(size, images_at, torch.zeros_like(noise))
        return Batch(
            noisy_latents=self.objective.add_noise(latents, noise, at),
            timesteps=at,
            conditioning=self.conditioning[texts_at],
            target=self.objective.target(latents, noise, at),
            loss_weights=torch.ones(len(images), device=device),  # same scale as without min-SNR
            losses=torch.zeros(len(images), device=device),
            loss_scales=torch.ones(1, device=device),
            slots=self.slot,
        )
