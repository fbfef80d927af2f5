"""Frozen linear layers with LoRA as one autograd function that adds in place.

Plain autograd copies a layer's output before adding LoRA's to it, and sums gradients in extra
memory: hundreds of small kernels per step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear


class LoraFunction(torch.autograd.Function):
    """``x (weight + up down)' + bias`` of one or several layers for one ``x``, (..., inputs).

    ``apply(x, downs, *weights, *biases, *ups)`` returns a tuple of outputs. ``downs`` holds all
    layers' down matrices stacked, (layers * rank, inputs); each up is (outputs, rank). With
    several styles they are (styles, layers * rank, inputs) and (styles, outputs, rank), and the
    first dimension of ``x`` holds equally many samples of each style, style after style. Weights
    and biases get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, downs: torch.Tensor, *of_layers: Any
    ) -> tuple[torch.Tensor, ...]:
        count = len(of_layers) // 3
        weights, biases, ups = (of_layers[at : at + count] for at in (0, count, 2 * count))
        flat = x.reshape(*downs.shape[:-2], -1, x.shape[-1])
        low = flat @ downs.mT
        add_product = torch.Tensor.addmm_ if flat.ndim == 2 else torch.Tensor.baddbmm_
        ys = []
        # Each layer's columns of ``low``, as views: products read them in place.
        for weight, bias, up, own in zip(
            weights, biases, ups, low.chunk(count, dim=-1), strict=True
        ):
            y = linear(flat, weight, bias)
            add_product(y, own, up.mT)
            ys.append(y.view(*x.shape[:-1], -1))
        ctx.save_for_backward(flat, low, downs, *weights, *ups)
        ctx.shape = x.shape
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *of_ys: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        count = len(of_ys)
        flat, low, downs, *of_layers = ctx.saved_tensors
        weights, ups = of_layers[:count], of_layers[count:]
        dys = [dy.reshape(*flat.shape[:-1], -1) for dy in of_ys]
        add_product = torch.Tensor.addmm_ if flat.ndim == 2 else torch.Tensor.baddbmm_
        of_low = torch.empty_like(low)
        for dy, up, own in zip(dys, ups, of_low.chunk(count, dim=-1), strict=True):
            add_product(own, dy, up, beta=0)
        dx = None
        if ctx.needs_input_grad[0]:
            # Each product is added to the sum of those before. In 16 bits this rounds less than
            # adding up the layers' separate gradients, and in another order.
            dx = dys[0] @ weights[0]
            rows = dx.view(-1, dx.shape[-1])
            for dy, weight in zip(dys[1:], weights[1:], strict=True):
                rows.addmm_(dy.reshape(-1, dy.shape[-1]), weight)
            add_product(dx, of_low, downs)
            dx = dx.view(ctx.shape)
        of_ups = [dy.mT @ own for dy, own in zip(dys, low.chunk(count, dim=-1), strict=True)]
        return dx, of_low.mT @ flat, *[None] * (2 * count), *of_ups
