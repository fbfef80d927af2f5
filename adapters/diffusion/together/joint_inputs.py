"""What one pass for several styles asks of the denoiser."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from adapters.diffusion.step.passes import Question


@dataclass(frozen=True)
class JointInputs:
    """The questions of k styles with n images each, style after style, on the device.

    Whose they are is content, not form: a recording made for some styles serves any others.
    """

    noisy: torch.Tensor
    """(k * n, c, h, w)"""
    timesteps: torch.Tensor
    """(k * n,)"""
    states: torch.Tensor
    """(k * n, tokens, width)"""
    target: torch.Tensor
    """(k * n, c, h, w)"""
    weights: torch.Tensor
    """(k * n,): of each image's loss, as its style weighs its timestep."""
    factors: torch.Tensor
    """(k,): what each style's loss is multiplied by on its way back."""
    rows: torch.Tensor
    """(k,): each style's row in the stack."""

    @property
    def key(self) -> Hashable:
        """Equal for passes that one recording serves."""
        return tuple(self.noisy.shape), tuple(self.states.shape), len(self.rows)

    def own(self) -> JointInputs:
        """A copy in memory of its own."""
        return JointInputs(*(tensor.clone() for tensor in self._tensors))

    def take(self, other: JointInputs) -> None:
        """Copy another pass's content into this memory."""
        for own, new in zip(self._tensors, other._tensors, strict=True):
            own.copy_(new)

    @property
    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(vars(self).values())


def joint_inputs(
    questions: Sequence[Question], factors: Sequence[torch.Tensor], rows: torch.Tensor
) -> JointInputs:
    """One pass for all of ``questions``, each of a style, all of one shape."""
    noisy, timesteps, states, target, weights = (
        torch.cat(parts) for parts in zip(*map(_parts, questions), strict=True)
    )
    return JointInputs(noisy, timesteps, states, target, weights, torch.stack(list(factors)), rows)


def _parts(question: Question) -> tuple[torch.Tensor, ...]:
    return (
        question.noisy,
        question.timesteps,
        question.states,
        question.target,
        question.weights,
    )
