"""What follows a backward pass: clipping, the optimizer, and notes that are read once an epoch."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import torch

from adapters.diffusion.data.step_inputs import StepInputs
from adapters.diffusion.step.optimizer import (
    OptimizerState,
    build_optimizer,
    restore_state,
    state_of,
    stays_on_device,
)
from domain.parameters import TrainingParameters

NOT_SCALED = (1.0, 0)
"""The loss scale where there is none, and the steps since it last changed."""


@dataclass(frozen=True)
class StepReadings:
    """What an epoch's steps have noted on the device, read in one go."""

    loss: float
    """Sum over the epoch's images."""
    gradient_norm: float
    """Sum over the epoch's steps, each before clipping."""
    largest_gradient_norm: float
    moved: float
    """How far the weight that moved most has come."""

    @property
    def finite(self) -> bool:
        """False as soon as one step's loss, gradient or weight was not a number."""
        return all(map(math.isfinite, astuple(self)))


class Update:
    """Clipping and the optimizer of one style's weights, and the epoch's notes.

    Nothing is read back and nothing is reallocated: the same calls on the same memory, which
    is what lets them be recorded once and replayed.
    """

    def __init__(
        self,
        weights: torch.nn.Parameter,
        parameters: TrainingParameters,
        *,
        loss_scaling: bool,
        text_weights: int = 0,
    ) -> None:
        """Train ``weights``, float32; its gradient is there already.

        Args:
            text_weights: how many of the last are the text encoder's.
        """
        self._of_text = weights.detach()[weights.numel() - text_weights :]
        self._text_share = parameters.text_encoder_share
        self._weights = weights
        self._max_grad_norm = parameters.max_grad_norm
        device = weights.device
        self._optimizer = build_optimizer(weights, parameters)
        self._rate_on_device = stays_on_device(parameters.optimizer)
        self._scaler = torch.amp.GradScaler(device.type, enabled=loss_scaling)
        self._one = torch.ones((), device=device)
        self.notes = torch.zeros(3, device=device)
        """Sums of losses and gradient norms over the epoch so far, and the largest norm."""

    @property
    def weights(self) -> torch.Tensor:
        """What is trained, (n,), float32."""
        return self._weights.detach()

    @property
    def gradient(self) -> torch.Tensor:
        """Of the weights, in memory that stays."""
        assert self._weights.grad is not None
        return self._weights.grad

    @property
    def loss_scale(self) -> tuple[float, int]:
        """The scale, and the steps since it last changed."""
        state = self._scaler.state_dict()
        return (state["scale"], state["_growth_tracker"]) if state else NOT_SCALED

    @property
    def optimizer_state(self) -> OptimizerState:
        """All that the optimizer remembers, sharing its tensors."""
        return state_of(self._optimizer)

    def restore(
        self, optimizer: OptimizerState, notes: torch.Tensor, loss_scale: tuple[float, int]
    ) -> None:
        """Put all but the weights where it was, in place.

        Raises:
            OptimizerStateInvalid: the state is of another optimizer or of other weights.
        """
        if not optimizer.tensors:
            self._optimizer.state.clear()  # of those that begin lazily, before the first step
        restore_state(self._optimizer, optimizer)
        self.notes.copy_(notes)
        self.discard_gradient()
        if self._scaler.is_enabled():
            scale, tracker = loss_scale
            state = self._scaler.state_dict()
            self._scaler.load_state_dict({**state, "scale": scale, "_growth_tracker": tracker})

    def discard_gradient(self) -> None:
        """Forget what a step that broke off has left. The gradient's memory stays."""
        self.gradient.zero_()

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to go backward from."""
        scaled: torch.Tensor = self._scaler.scale(loss)
        return scaled

    def factor(self, count: int) -> torch.Tensor:
        """What the summed losses of ``count`` images are multiplied by on their way back."""
        return self.scaled(self._one / count)

    def __call__(self, inputs: StepInputs, losses: torch.Tensor) -> None:
        """Move the weights along the gradient, and note the step.

        Args:
            losses: sum over the batch's images, a scalar on the device.
        """
        if self._scaler.is_enabled():
            # A step that broke off half-way may be taken again; the scaler would not have it.
            self._scaler._per_optimizer_states.clear()
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._weights, self._max_grad_norm)
        if self._scaler.is_enabled():
            # An overflow is the scale's business: such a step is left out, and is no divergence.
            norm = torch.nan_to_num(norm, nan=0.0, posinf=0.0)
        for group in self._optimizer.param_groups:
            group["lr"] = inputs.learning_rate if self._rate_on_device else inputs.rate
        # 0 * norm is 0, or not a number when the gradient is not finite.
        noted = torch.stack([losses + 0 * norm, norm])
        before = self._of_text.clone() if self._text_share != 1.0 else None
        self._scaler.step(self._optimizer)
        if before is not None:
            # Each of the optimizers moves in proportion to the learning rate.
            self._of_text.copy_(before + self._text_share * (self._of_text - before))
        self._scaler.update()
        self.notes[:2] += noted
        self.notes[2:] = torch.maximum(self.notes[2:], norm)
        # The matrices' gradients are views of this one: it is cleared, never let go.
        self._optimizer.zero_grad(set_to_none=False)

    def read(self, since: torch.Tensor) -> StepReadings:
        """Wait for the device, and read the notes.

        Args:
            since: the weights that ``moved`` counts from.
        """
        moved = (self.weights - since).abs().max()
        return StepReadings(*torch.cat([self.notes, moved[None]]).tolist())
