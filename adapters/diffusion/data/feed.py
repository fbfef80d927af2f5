"""What steps train on, drawn ahead of time so that the device never waits for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch

from adapters.diffusion.data.dataset import EncodedDataset
from adapters.diffusion.data.rng import (
    ImageBatch,
    StepNoise,
    epoch_batches,
    sample_step_noise,
    steps_per_epoch,
)
from adapters.diffusion.data.step_inputs import LEARNING_RATE_SLOTS, StepInputs
from domain.parameters import TrainingParameters

MOST_STEPS = 64
"""Steps drawn at a time, at most; never beyond the epoch's end."""
MOST_NUMBERS = 2**24
"""float32 numbers drawn at a time, at most, but for a single step that takes more: 64 MiB."""


class Feed:
    """Each step's batch on the device, by the step's number.

    Draws are a function of the seed and the step, made on the CPU; they go to the device in two
    copies for many steps at once, from pinned memory, without waiting.

    Args:
        buckets: positions of the images to train on, size by size.
        learning_rate: of each step, counted from 0.
        timesteps: length of the noise schedule.
    """

    def __init__(
        self,
        parameters: TrainingParameters,
        dataset: EncodedDataset,
        buckets: Sequence[Sequence[int]],
        learning_rate: Callable[[int], float],
        timesteps: int,
        device: torch.device,
    ) -> None:
        self._parameters = parameters
        self._dataset = dataset
        self._learning_rate = learning_rate
        self._timesteps = timesteps
        self._device = device
        self._buckets = buckets
        self._ready: dict[int, StepInputs] = {}

    def inputs(self, step: int) -> StepInputs:
        """The step's batch."""
        self.prepare(step)
        return self._ready[step]

    def prepare(self, step: int) -> None:
        """Draw for ``step`` and those after it, unless that is done already."""
        if step not in self._ready:
            self._ready = self._draw_from(step)

    def forget(self) -> None:
        """Draw anew: the learning rate has changed."""
        self._ready = {}

    def _draw_from(self, step: int) -> dict[int, StepInputs]:
        epoch_steps = steps_per_epoch(self._buckets, self._parameters.batch_size)
        epoch, position = divmod(step, epoch_steps)
        batches = epoch_batches(
            self._buckets, self._parameters.batch_size, self._parameters.seed, epoch
        )[position : position + MOST_STEPS]
        numbers = list(accumulate(_numbers(self._dataset.shape(batch)) for batch in batches))
        count = max(1, sum(total <= MOST_NUMBERS for total in numbers))
        return self._pack(step, batches[:count])

    def _pack(self, first: int, batches: list[ImageBatch]) -> dict[int, StepInputs]:
        shapes = [self._dataset.shape(batch) for batch in batches]
        draws = [
            sample_step_noise(self._parameters, first + index, shape, self._timesteps)
            for index, shape in enumerate(shapes)
        ]
        rates = [self._learning_rate(first + index) for index in range(len(batches))]
        floats = self._send(
            torch.cat([_floats(draw, rate) for draw, rate in zip(draws, rates, strict=True)])
        )
        indices = self._send(
            torch.cat(
                [self._indices(batch, draw) for batch, draw in zip(batches, draws, strict=True)]
            )
        )
        floats_each = torch.split(floats, [_numbers(shape) for shape in shapes])
        indices_each = torch.split(indices, [3 * len(batch) for batch in batches])
        return {
            first + index: StepInputs(
                size=self._dataset.images[batches[index][0]].size,
                shape=shapes[index],
                floats=floats_each[index],
                indices=indices_each[index].view(3, -1),
                rate=rates[index],
            )
            for index in range(len(batches))
        }

    def _indices(self, batch: ImageBatch, draw: StepNoise) -> torch.Tensor:
        rows = self._dataset.rows(batch, draw.flipped)
        captions = self._dataset.rows_of_captions(batch, draw.caption_dropped)
        return torch.cat([draw.timesteps, torch.tensor([*rows, *captions])])

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cuda":
            return tensor.to(self._device)
        # The allocator keeps pinned memory until the copy out of it is done.
        return tensor.pin_memory().to(self._device, non_blocking=True)


def _numbers(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape) + LEARNING_RATE_SLOTS


def _floats(draw: StepNoise, learning_rate: float) -> torch.Tensor:
    rate = torch.tensor([learning_rate] + [0.0] * (LEARNING_RATE_SLOTS - 1))
    return torch.cat([draw.noise.flatten(), draw.vae_noise.flatten(), rate])
