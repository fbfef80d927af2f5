"""One optimisation step of the adapters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace

import torch
from diffusers import UNet2DConditionModel

from adapters.diffusion.dataset import Dataset, Size
from adapters.diffusion.loss import Objective
from adapters.diffusion.optimizer import (
    OptimizerState,
    build_optimizer,
    restore_state,
    state_of,
    stays_on_device,
)
from domain.parameters import TrainingParameters

LEARNING_RATE_SLOTS = 4
"""Numbers kept for the one learning rate, so that what follows stays aligned to 16 bytes."""
_INITIAL_LOSS_SCALE = 2.0**16
_WHOLE = slice(None)


@dataclass(frozen=True)
class StepInputs:
    """One step's batch on the device, in two vectors: moving it there takes two copies."""

    size: Size
    """Of the pictures; all are of one bucket."""
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

    def take(self, other: StepInputs) -> None:
        """Copy another batch's content into this memory."""
        self.floats.copy_(other.floats)
        self.indices.copy_(other.indices)

    @property
    def count(self) -> int:
        """Pictures."""
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


@dataclass(frozen=True)
class StepReadings:
    """What an epoch's steps have noted on the device, read in one go."""

    loss: float
    """Sum over the epoch's pictures."""
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
        self._text_share = parameters.text_encoder_share if text_weights else 1.0
        self._weights = weights
        self._max_grad_norm = parameters.max_grad_norm
        device = weights.device
        self._optimizer = build_optimizer(weights, parameters)
        self._rate_on_device = stays_on_device(parameters.optimizer)
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=_INITIAL_LOSS_SCALE, enabled=loss_scaling
        )
        self.notes = torch.zeros(3, device=device)
        """Sums of losses and gradient norms over the epoch so far, and the largest norm."""

    @property
    def loss_scale(self) -> tuple[float, int]:
        """The scale, and the steps since it last changed; (1, 0) where nothing is scaled."""
        state = self._scaler.state_dict()
        return (state["scale"], state["_growth_tracker"]) if state else (1.0, 0)

    @property
    def optimizer_state(self) -> OptimizerState:
        """All that the optimizer remembers, sharing its tensors."""
        return state_of(self._optimizer)

    @torch.no_grad()
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
        assert self._weights.grad is not None
        self._weights.grad.zero_()

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to go backward from."""
        scaled: torch.Tensor = self._scaler.scale(loss)
        return scaled

    def __call__(self, inputs: StepInputs, losses: torch.Tensor) -> None:
        """Move the weights along the gradient, and note the step.

        Args:
            losses: sum over the batch's pictures, a scalar on the device.
        """
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
        moved = (self._weights.detach() - since).abs().max()
        return StepReadings(*torch.cat([self.notes, moved[None]]).tolist())


@dataclass(frozen=True)
class Question:
    """What the denoiser is asked, for n pictures."""

    noisy: torch.Tensor
    """(n, c, h, w)"""
    timesteps: torch.Tensor
    """(n,)"""
    states: torch.Tensor
    """(n, tokens, width)"""
    target: torch.Tensor
    """(n, c, h, w)"""


class Stepper:
    """Forward, backward and update for one batch of one style.

    Args:
        conditioning: states of captions by their rows; None for the dataset's own.
        refresh: called before each forward pass.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        update: Update,
        objective: Objective,
        dataset: Dataset,
        *,
        conditioning: Callable[[torch.Tensor], torch.Tensor] | None = None,
        refresh: Callable[[], None] | None = None,
        channels_last: bool = False,
    ) -> None:
        self._unet = unet
        # The model's own property walks all of its modules each time.
        self._dtype = unet.dtype
        self.update = update
        self._objective = objective
        self._dataset = dataset
        self._conditioning = conditioning or dataset.captions.__getitem__
        self._refresh = refresh
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def step(self, inputs: StepInputs, micro_batch: int) -> None:
        """Train on one batch. Until its gradient is whole nothing else has changed.

        Args:
            micro_batch: pictures per forward pass; their gradients add up to the batch's.
        """
        losses = [
            self._accumulate(inputs, slice(start, start + micro_batch))
            for start in range(0, inputs.count, micro_batch)
        ]
        total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        self.update(inputs, total)

    def question(self, inputs: StepInputs, part: slice = _WHOLE) -> Question:
        """What the denoiser is asked for some of the batch's pictures."""
        timesteps, rows, captions = inputs.indices[:, part]
        noise = inputs.noise[part]
        latents = self._dataset.sample(inputs.size, rows, inputs.posterior[part])
        return Question(
            noisy=self._objective.noisy(latents, noise, timesteps),
            timesteps=timesteps,
            states=self._conditioning(captions),
            target=self._objective.target(latents, noise, timesteps),
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

    def losses(self, question: Question, answer: torch.Tensor) -> torch.Tensor:
        """Sum of the pictures' losses, a scalar."""
        return self._objective.losses(answer, question.target, question.timesteps).sum()

    def _accumulate(self, inputs: StepInputs, part: slice) -> torch.Tensor:
        if self._refresh is not None:
            self._refresh()
        question = self.question(inputs, part)
        answer = self.ask(question.noisy, question.timesteps, question.states)
        losses = self.losses(question, answer)
        torch.autograd.backward(self.update.scaled(losses / inputs.count))
        return losses.detach()
