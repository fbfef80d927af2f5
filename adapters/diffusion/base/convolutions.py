"""The frozen convolutions of a wide denoiser as matrix products, for a CPU.

A library's convolution puts its weights into an order of its own at every call, forward and
backward. At batch 1 a wide denoiser has more weights than pixels, and that takes longer than the
arithmetic. Products read the weights as they lie; and where there are pixels enough, minimal
filtering needs a quarter of the multiplications.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel

Matrix = tuple[tuple[float, ...], ...]
_NARROW = 32
"""Channels below which a convolution is left as it is: there is nothing to be won."""

_SHAPES = {(3, (1, 1), (1, 1)), (3, (1, 1), (2, 2)), (1, (0, 0), (1, 1))}
"""Side of the weights, padding and stride that are known here: all that Stable Diffusion has."""


@dataclass(frozen=True)
class Filtering:
    """Minimal filtering with 3 x 3 weights (Winograd; arXiv 1509.09308, section 4): what becomes
    of the inputs, the weights and the products along each side of a tile."""

    into: Matrix
    """(side of the inputs, side of the inputs)"""
    of_weights: Matrix
    """(side of the inputs, 3)"""
    out_of: Matrix
    """(side of the outputs, side of the inputs)"""

    @property
    def tile(self) -> int:
        """Side of the outputs."""
        return len(self.out_of)

    @property
    def reach(self) -> int:
        """Side of the inputs."""
        return len(self.into)


TILES_OF_2 = Filtering(
    into=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    of_weights=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    out_of=((1, 1, 1, 0), (0, 1, -1, -1)),
)
"""16 multiplications for 4 outputs instead of 36."""
TILES_OF_4 = Filtering(
    into=(
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    of_weights=(
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    out_of=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)
"""36 multiplications for 16 outputs instead of 144."""
FILTERED_FROM = {TILES_OF_4: 32 * 32, TILES_OF_2: 16 * 16}
"""Pixels of a feature map from which each pays. On smaller ones the transformed weights, 4 times
and 16/9 times the original, take longer to read than their products to compute."""


@contextmanager
def as_products(unet: UNet2DConditionModel) -> Iterator[None]:
    """While open, the denoiser's frozen convolutions are matrix products, in float32.

    Open before adapters are put on: theirs are small and stay as they are.
    """
    rerouted = [module for module in unet.modules() if _suits(module)]
    for module in rerouted:
        module.forward = _forward_of(module)
    try:
        yield
    finally:
        for module in rerouted:
            module.__dict__.pop("forward", None)


def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Convolve (n, c, h, w) with (k, c, 1, 1)."""
    n, c, h, w = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(-1, c)
    product = torch.nn.functional.linear(flat, weight.flatten(1), bias)
    return product.view(n, h, w, -1).permute(0, 3, 1, 2)


def by_columns(
    x: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor | None, stride: int = 1
) -> torch.Tensor:
    """Convolve (n, c, h, w), padded by 1, with 3 x 3 weights in one product.

    Args:
        rows: (k, 9 * c), a row of the weights for each output: height, width, inputs.
    """
    n, c, h, w = x.shape
    high, wide = (h - 1) // stride + 1, (w - 1) // stride + 1
    columns = windows(x, 3, stride, high, wide).permute(2, 3, 4, 0, 1, 5).reshape(-1, 9 * c)
    product = torch.nn.functional.linear(columns, rows, bias)
    return product.view(n, high, wide, -1).permute(0, 3, 1, 2)


def transformed(weight: torch.Tensor, filtering: Filtering) -> torch.Tensor:
    """What ``by_tiles`` takes of weights (k, c, 3, 3): (inputs of a tile, c, k)."""
    k, c = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return (_both_sides(filtering.of_weights) @ taps).view(-1, c, k)


def by_tiles(
    x: torch.Tensor,
    transformed: torch.Tensor,
    bias: torch.Tensor | None,
    filtering: Filtering,
) -> torch.Tensor:
    """Convolve (n, c, h, w), padded by 1, with 3 x 3 weights in fewer multiplications.

    The same function within 1e-4 of its spread in float32; half precision would not do.
    """
    n, c, h, w = x.shape
    tile, reach = filtering.tile, filtering.reach
    high, wide = -(-h // tile), -(-w // tile)
    inputs = windows(x, reach, tile, high, wide).reshape(reach**2, -1)
    products = torch.bmm((_both_sides(filtering.into) @ inputs).view(reach**2, -1, c), transformed)
    outputs = _both_sides(filtering.out_of) @ products.view(reach**2, -1)
    tiles = outputs.view(tile, tile, n, high, wide, -1).permute(2, 3, 0, 4, 1, 5)
    whole = tiles.reshape(n, high * tile, wide * tile, -1)
    if bias is not None:
        whole = whole + bias
    return whole[:, :h, :w].permute(0, 3, 1, 2)


def windows(x: torch.Tensor, side: int, step: int, high: int, wide: int) -> torch.Tensor:
    """Squares of (n, c, h, w) as (side, side, n, high, wide, c): ``high`` by ``wide`` of them,
    ``step`` pixels apart, the first from one pixel outside. Zeros lie around the picture."""
    # torch gives ``apply`` no types.
    view: torch.Tensor = _Windows.apply(x, side, step, high, wide)  # type: ignore[no-untyped-call]
    return view


class _Windows(torch.autograd.Function):
    """Autograd's own way back from overlapping views takes far longer."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, side: int, step: int, high: int, wide: int
    ) -> torch.Tensor:
        n, c, h, w = x.shape
        ctx.of = x.shape, step
        padded = x.new_zeros(_padded(h, w, n, c, side, step, high, wide))
        padded[:, 1 : h + 1, 1 : w + 1] = x.permute(0, 2, 3, 1)
        picture, row, pixel, channel = padded.stride()
        return padded.as_strided(
            (side, side, n, high, wide, c),
            (row, pixel, picture, step * row, step * pixel, channel),
        )

    @staticmethod
    def backward(
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None, None]:
        (n, c, h, w), step = ctx.of
        (gradient,) = gradients
        side, _, _, high, wide, _ = gradient.shape
        padded = gradient.new_zeros(_padded(h, w, n, c, side, step, high, wide))
        for i in range(side):
            for j in range(side):
                padded[:, i : i + step * high : step, j : j + step * wide : step] += gradient[i, j]
        return padded[:, 1 : h + 1, 1 : w + 1].permute(0, 3, 1, 2), None, None, None, None


def _padded(
    h: int, w: int, n: int, c: int, side: int, step: int, high: int, wide: int
) -> tuple[int, int, int, int]:
    """A zero on each side at least, and all that the last window reaches."""
    return n, max(h + 2, step * (high - 1) + side), max(w + 2, step * (wide - 1) + side), c


@cache
def _both_sides(transform: Matrix) -> torch.Tensor:
    """A transform of one side, for squares laid out row after row."""
    one = torch.tensor(transform, dtype=torch.float32)
    return torch.kron(one, one)


def _suits(module: torch.nn.Module) -> bool:
    if not isinstance(module, torch.nn.Conv2d) or module.weight.requires_grad:
        return False
    shape = module.kernel_size[0], module.padding, module.stride
    return (
        shape in _SHAPES
        and module.kernel_size[0] == module.kernel_size[1]
        and module.dilation == (1, 1)
        and module.groups == 1
        and min(module.in_channels, module.out_channels) >= _NARROW
    )


def _forward_of(conv: torch.nn.Conv2d) -> Callable[[torch.Tensor], torch.Tensor]:
    weight, bias, stride = conv.weight, conv.bias, conv.stride[0]
    if conv.kernel_size == (1, 1):
        return lambda x: pointwise(x, weight, bias)
    # A view where the weights lie with the channels innermost.
    rows = weight.permute(0, 2, 3, 1).flatten(1)
    kept: dict[Filtering, torch.Tensor] = {}

    def forward(x: torch.Tensor) -> torch.Tensor:
        pixels = x.shape[2] * x.shape[3]
        for filtering, least in FILTERED_FROM.items():
            if stride == 1 and pixels >= least:
                if filtering not in kept:
                    kept[filtering] = transformed(weight, filtering)
                return by_tiles(x, kept[filtering], bias, filtering)
        return by_columns(x, rows, bias, stride)

    return forward
