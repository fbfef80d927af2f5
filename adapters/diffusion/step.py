"""One optimisation step of the adapters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import UNet2DConditionModel

from adapters.diffusion.loss import Objective
from adapters.diffusion.optimizer import (
    OptimizerState,
    build_optimizer,
    restore_state,
    state_of,
)
from domain.parameters import TrainingParameters


class Stepper:
    """Forward, backward, clipping and the optimizer.

    With AdamW nothing is read back from the device. On CUDA the denoiser computes in bfloat16
    under autocast; the weights, their gradient and AdamW's moments are float32 everywhere.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        weights: torch.nn.Parameter,
        objective: Objective,
        learning_rate: Callable[[int], float],
        parameters: TrainingParameters,
    ) -> None:
        """Train ``weights``, the adapters of ``unet`` end to end; its gradient is there already.

        Args:
            learning_rate: of each step, counted from 0.
        """
        self._unet = unet
        # The model's own properties walk all of its modules each time.
        self._dtype, self._on_cuda = unet.dtype, unet.device.type == "cuda"
        self._weights = weights
        self._objective = objective
        self._learning_rate = learning_rate
        self._max_grad_norm = parameters.max_grad_norm
        self._optimizer = build_optimizer(weights, parameters)

    def optimizer_state(self) -> OptimizerState:
        """All that the optimizer remembers, sharing its tensors."""
        return state_of(self._optimizer)

    def restore(self, state: OptimizerState) -> None:
        """Put the optimizer where ``state`` was taken.

        Raises:
            OptimizerStateInvalid: it was taken of another optimizer or of other weights.
        """
        restore_state(self._optimizer, state)

    def step(
        self,
        index: int,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: torch.Tensor,
    ) -> torch.Tensor:
        """Train on one batch; all tensors on the device.

        Args:
            index: the step's number in the run, from 0: what the learning rate depends on.
            latents: (n, c, h, w), scaled.
            noise: (n, c, h, w).
            timesteps: (n,), integers.
            conditioning: (n, tokens, width).

        Returns:
            Sum of the pictures' losses before the update, a scalar on the device. Not finite
            when the loss or its gradient is not.
        """
        objective = self._objective
        with self._autocast():
            prediction = self._unet(
                objective.noisy(latents, noise, timesteps).to(self._dtype),
                timesteps,
                encoder_hidden_states=conditioning,
                return_dict=False,
            )[0]
        target = objective.target(latents, noise, timesteps)
        losses = objective.losses(prediction, target, timesteps)
        torch.autograd.backward(losses.mean())
        norm = torch.nn.utils.clip_grad_norm_(self._weights, self._max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate(index)
        self._optimizer.step()
        # The matrices' gradients are views of this one: it is cleared, never let go.
        self._optimizer.zero_grad(set_to_none=False)
        # 0 * norm is 0, or not a number when the gradient is not finite.
        return losses.detach().sum() + 0 * norm

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cuda", torch.bfloat16) if self._on_cuda else nullcontext()
