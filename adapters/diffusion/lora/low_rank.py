"""A frozen linear layer and its adapter, forward and backward in as few calls as can be.

Autograd, left to itself, copies the layer's output before it adds to it, and adds gradients that
could have been summed where they lie: hundreds of small kernels a step.
"""

from __future__ import annotations

from typing import Any

import torch


def adapted(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
) -> torch.Tensor:
    """``x (weight + up down)' + bias`` for (..., inputs).

    Args:
        down: (rank, inputs); or (styles, rank, inputs), where the first dimension of ``x`` holds
            the same number of samples of each.
        up: (outputs, rank); or (styles, outputs, rank).
    """
    outputs = weight.shape[0]
    flat = x.reshape(*down.shape[:-2], -1, x.shape[-1])
    y: torch.Tensor = _Adapted.apply(  # type: ignore[no-untyped-call] # torch has no types for it
        flat, weight, bias, down, up
    )
    return y.view(*x.shape[:-1], outputs)


class _Adapted(torch.autograd.Function):
    """See ``adapted``. ``x`` is (tokens, inputs) or (styles, tokens, inputs)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
    ) -> torch.Tensor:
        low = x @ down.mT
        y = torch.nn.functional.linear(x, weight, bias)
        _add_product(y, low, up.mT)
        ctx.save_for_backward(x, low, weight, down, up)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dy,) = gradients
        x, low, weight, down, up = ctx.saved_tensors
        of_low = dy @ up
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ weight
            _add_product(dx, of_low, down)
        return dx, None, None, of_low.mT @ x, dy.mT @ low


def _add_product(y: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``y += left right``, in place."""
    if y.ndim == 2:
        y.addmm_(left, right)
    else:
        y.baddbmm_(left, right)
