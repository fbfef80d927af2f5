"""The gradient of one style's loss for a batch of its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel

from adapters.diffusion.data.dataset import EncodedDataset
from adapters.diffusion.data.step_inputs import StepInputs
from adapters.diffusion.step.loss import Objective, weighted_squares

_WHOLE = slice(None)


@dataclass(frozen=True)
class Question:
    """What the denoiser is asked, for n images."""

    noisy: torch.Tensor
    """(n, c, h, w)"""
    timesteps: torch.Tensor
    """(n,)"""
    states: torch.Tensor
    """(n, tokens, width)"""
    target: torch.Tensor
    """(n, c, h, w)"""
    weights: torch.Tensor
    """(n,): of the images' losses"""


class Passes:
    """Forward and backward for batches of one style.

    Args:
        scaled: the loss to go backward from.
        conditioning: states of captions by their rows; None for the dataset's own.
        refresh: called before each forward pass.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        objective: Objective,
        dataset: EncodedDataset,
        *,
        scaled: Callable[[torch.Tensor], torch.Tensor],
        conditioning: Callable[[torch.Tensor], torch.Tensor] | None = None,
        refresh: Callable[[], None] | None = None,
        channels_last: bool = False,
    ) -> None:
        self._unet = unet
        # The model's own property walks all of its modules each time.
        self._dtype = unet.dtype
        self._scaled = scaled
        self._objective = objective
        self._dataset = dataset
        self._conditioning = conditioning or dataset.captions.__getitem__
        self._refresh = refresh
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def gradient(self, inputs: StepInputs, micro_batch: int) -> torch.Tensor:
        """Add the gradient of the images' mean loss to that of the adapters.

        Args:
            micro_batch: images per forward pass; their gradients add up to the batch's.

        Returns:
            The sum of the losses, a scalar on the device.
        """
        losses = [
            self._accumulate(inputs, slice(start, start + micro_batch))
            for start in range(0, inputs.count, micro_batch)
        ]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def question(self, inputs: StepInputs, part: slice = _WHOLE) -> Question:
        """What the denoiser is asked for some of the batch's images."""
        timesteps, rows, captions = inputs.indices[:, part]
        noise = inputs.noise[part]
        latents = self._dataset.sample(inputs.size, rows, inputs.posterior[part])
        return Question(
            noisy=self._objective.noisy(latents, noise, timesteps),
            timesteps=timesteps,
            states=self._conditioning(captions),
            target=self._objective.target(latents, noise, timesteps),
            weights=self._objective.weight[timesteps],
        )

    def ask(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        """The denoiser's answer, (n, c, h, w)."""
        answer: torch.Tensor = self._unet(
            noisy.to(self._dtype, memory_format=self._format),
            timesteps,
            encoder_hidden_states=states,
            return_dict=False,
        )[0]
        return answer

    def _accumulate(self, inputs: StepInputs, part: slice) -> torch.Tensor:
        if self._refresh is not None:
            self._refresh()
        question = self.question(inputs, part)
        answer = self.ask(question.noisy, question.timesteps, question.states)
        losses = weighted_squares(answer, question.target, question.weights).sum()
        torch.autograd.backward(self._scaled(losses / inputs.count))
        return losses.detach()
