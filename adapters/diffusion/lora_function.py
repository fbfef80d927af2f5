"""Frozen linear layers with LoRA as one autograd function, which adds in place.

Plain autograd copies a layer's output before it adds the LoRA's to it, and sums gradients in
memory of their own: hundreds of small kernels per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def lora_linear(
    x: torch.Tensor,
    layers: Sequence[torch.nn.Linear],
    downs: torch.Tensor,
    ups: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """``x (weight + up down)' + bias`` of each layer, for one x, (..., inputs).

    Args:
        layers: frozen, with equal numbers of inputs.
        downs: all layers' down matrices stacked, (layers * rank, inputs); or (styles,
            layers * rank, inputs), where the first dimension of ``x`` holds equally many
            samples of each style, style after style.
        ups: each layer's up matrix, (outputs, rank); or (styles, outputs, rank).
    """
    flat = x.reshape(*downs.shape[:-2], -1, x.shape[-1])
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    # torch has no types for it.
    outputs: tuple[torch.Tensor, ...] = _LoraLinear.apply(  # type: ignore[no-untyped-call]
        flat, downs, *weights, *biases, *ups
    )
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)


class _LoraLinear(torch.autograd.Function):
    """See ``lora_linear``. ``x`` is (tokens, inputs) or (styles, tokens, inputs)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, downs: torch.Tensor, *of_layers: Any
    ) -> tuple[torch.Tensor, ...]:
        count = len(of_layers) // 3
        weights, biases, ups = (of_layers[at : at + count] for at in (0, count, 2 * count))
        low = x @ downs.mT
        ys = []
        for weight, bias, up, own in zip(weights, biases, ups, _parts(low, count), strict=True):
            y = torch.nn.functional.linear(x, weight, bias)
            _add_product(y, own, up.mT)
            ys.append(y)
        ctx.save_for_backward(x, low, downs, *weights, *ups)
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *dys: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        count = len(dys)
        x, low, downs, *of_layers = ctx.saved_tensors
        weights, ups = of_layers[:count], of_layers[count:]
        of_low = torch.empty_like(low)
        for dy, up, own in zip(dys, ups, _parts(of_low, count), strict=True):
            _add_product(own, dy, up, beta=0)
        dx = None
        if ctx.needs_input_grad[0]:
            # Each product is added to those before it: in 16 bits the order differs from that of
            # a sum of the layers' own gradients, and less is rounded.
            dx = dys[0] @ weights[0]
            rows = dx.view(-1, dx.shape[-1])
            for dy, weight in zip(dys[1:], weights[1:], strict=True):
                rows.addmm_(dy.reshape(-1, dy.shape[-1]), weight)
            _add_product(dx, of_low, downs)
        of_ups = [dy.mT @ own for dy, own in zip(dys, _parts(low, count), strict=True)]
        return dx, of_low.mT @ x, *[None] * (2 * count), *of_ups


def _parts(low: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Each layer's columns: products read and write them where they lie."""
    return low.chunk(count, dim=-1)


def _add_product(
    y: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, beta: float = 1
) -> None:
    """``y = beta y + left right``, in place."""
    if y.ndim == 2:
        y.addmm_(left, right, beta=beta)
    else:
        y.baddbmm_(left, right, beta=beta)
