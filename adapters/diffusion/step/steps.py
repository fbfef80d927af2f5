"""How a run's steps are carried out: recorded where they can be, in passes that memory holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel

from adapters.diffusion.data.step_inputs import StepInputs
from adapters.diffusion.step.passes import Passes
from adapters.diffusion.step.replay import Replay
from adapters.diffusion.step.update import Update


@dataclass(frozen=True, eq=False)
class Place:
    """A device with a denoiser on it that carries the run's adapters."""

    device: torch.device
    unet: UNet2DConditionModel
    passes: Passes
    replay: Replay[StepInputs]

    def recompute(self) -> None:
        """Keep no feature maps from here on."""
        # What is recomputed asks for the state of random generators, which no graph can tell.
        self.replay.stop("feature maps are recomputed")
        self.unet.enable_gradient_checkpointing()

    def close(self) -> None:
        """Leave the denoiser as it was."""
        self.replay.forget()
        self.unet.disable_gradient_checkpointing()


class Steps:
    """All steps on one device."""

    def __init__(self, place: Place, update: Update) -> None:
        self.place = place
        self.update = update

    def run(self, inputs: StepInputs, micro_batch: int) -> None:
        """Train on one batch.

        Args:
            micro_batch: images per forward pass, at most; their gradients add up.

        Raises:
            torch.OutOfMemoryError: and some of the gradient may be there already.
        """

        def whole(batch: StepInputs) -> None:
            self.update(batch, self.place.passes.gradient(batch, micro_batch))

        self.place.replay.run(inputs, whole)

    def discard_gradient(self) -> None:
        """Forget what a step that broke off has left."""
        self.update.discard_gradient()
