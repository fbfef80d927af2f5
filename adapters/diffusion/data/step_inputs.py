"""What one step trains on, as it lies on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from adapters.diffusion.data.dataset import Size

LEARNING_RATE_SLOTS = 4
"""Numbers kept for the one learning rate, so that what follows stays aligned to 16 bytes."""


@dataclass(frozen=True)
class StepInputs:
    """One step's batch on the device, in two vectors: moving it there takes two copies."""

    size: Size
    """Of the images; all are of one bucket."""
    shape: tuple[int, int, int, int]
    """(n, c, h, w) of the latents."""
    floats: torch.Tensor
    """(2 * n * c * h * w + 4,), float32: noise, posterior, learning rate."""
    indices: torch.Tensor
    """(3, n), int64: timesteps, rows of the bucket's posteriors, rows of the captions."""
    rate: float
    """The learning rate, for optimizers that want it on the host."""

    @property
    def key(self) -> tuple[Size, int]:
        """Equal for batches that one recording serves."""
        return self.size, self.count

    def own(self) -> StepInputs:
        """A copy in memory of its own."""
        return replace(self, floats=self.floats.clone(), indices=self.indices.clone())

    def part(self, which: slice) -> StepInputs:
        """Some of the images."""
        rate = self.floats[-LEARNING_RATE_SLOTS:]
        noise, posterior = self.noise[which], self.posterior[which]
        return replace(
            self,
            shape=(len(noise), *self.shape[1:]),
            floats=torch.cat([noise.flatten(), posterior.flatten(), rate]),
            indices=self.indices[:, which],
        )

    def take(self, other: StepInputs) -> None:
        """Copy another batch's content into this memory."""
        self.floats.copy_(other.floats)
        self.indices.copy_(other.indices)

    @property
    def count(self) -> int:
        """Images."""
        return self.shape[0]

    @property
    def learning_rate(self) -> torch.Tensor:
        """A scalar."""
        return self.floats[-LEARNING_RATE_SLOTS]

    @property
    def noise(self) -> torch.Tensor:
        """(n, c, h, w)"""
        return self.floats[: math.prod(self.shape)].view(self.shape)

    @property
    def posterior(self) -> torch.Tensor:
        """(n, c, h, w): picks a sample of the autoencoder's posterior."""
        numbers = math.prod(self.shape)
        return self.floats[numbers : 2 * numbers].view(self.shape)
