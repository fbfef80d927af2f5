"""Operations on feature maps in one pass each, where torch needs several.

Each is a plain torch function on a CPU, and a Triton kernel on a GPU. The affine weights are
frozen: only feature maps get gradients.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

_TILE = 4096
"""Values per tile of a group norm's program."""
_BLOCK = 128
"""Maximum number of adjacent channels in a tile, unless a single group has more."""
_SLOTS = 16
"""Maximum number of groups in a block."""
_WIDE = 8
"""Values per read: 16 bytes of 16 bits each."""
_MOST_CHUNKS = 64
"""Maximum number of chunks of a group whose sums one program combines."""
_PROGRAMS = 1024
"""Approximate number of programs per launch: several for each multiprocessor of a large GPU."""
_WARPS = 8
_STRETCH = 2048
"""Values per program if values, or rows, are independent of each other."""
_ROWS, _COLUMNS = 8, 256
"""Rows and columns of a gate's program: Stable Diffusion's widths are multiples of 256, but of no
higher power of two."""


def group_norm(
    x: torch.Tensor,
    norm: torch.nn.GroupNorm,
    *,
    shift: torch.Tensor | None = None,
    activated: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise (n, c, h, w). Also returns ``x`` for its other use, if it has one: the two
    gradients are summed in one pass.

    Args:
        shift: added before the norm, (n, c).
        activated: apply SiLU after the norm.
    """
    if x.is_cuda:
        found: tuple[torch.Tensor, torch.Tensor] = _launched(
            GroupNormed, x, norm.weight, norm.bias, shift, norm.num_groups, norm.eps, activated
        )
        return found
    moved = x if shift is None else x + shift[:, :, None, None]
    normal = torch.nn.functional.group_norm(
        moved, norm.num_groups, norm.weight, norm.bias, norm.eps
    )
    return torch.nn.functional.silu(normal) if activated else normal, x


def layer_norm(
    x: torch.Tensor, norm: torch.nn.LayerNorm, plus: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x + plus`` for (..., width): the normalised sum, and the sum itself for its other use."""
    if x.is_cuda:
        found: tuple[torch.Tensor, torch.Tensor] = _launched(
            LayerNormed, x, plus, norm.weight, norm.bias, norm.eps
        )
        return found
    total = x if plus is None else x + plus
    return norm(total), total


def gated(x: torch.Tensor) -> torch.Tensor:
    """``a * gelu(b)`` for (..., 2 * width), whose halves are a and b (arXiv 2002.05202)."""
    if x.is_cuda:
        found: torch.Tensor = _launched(Gated, x)
        return found
    a, b = x.chunk(2, dim=-1)
    return a * torch.nn.functional.gelu(b)


def added(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``a + b + bias`` for (n, c, h, w) and (c,)."""
    if a.is_cuda:
        found: torch.Tensor = _launched(Added, a, b, bias)
        return found
    return a + b + bias[:, None, None]


def _launched(function: type[torch.autograd.Function], x: torch.Tensor, *rest: object) -> Any:
    with torch.cuda.device(x.device):  # Triton launches on the current device
        return function.apply(x, *rest)  # type: ignore[no-untyped-call] # torch has no types for it


class NormGrid(NamedTuple):
    """How a group norm's work is divided among programs."""

    each: int
    """Groups in a block."""
    blocks: int
    block: int
    """A block's channels, rounded up to a power of two."""
    align: int
    """Common divisor of a block's first channel and width."""
    rows: int
    """Pixels per tile."""
    tiles: int
    """Tiles per chunk."""
    chunks: int

    @staticmethod
    def of(images: int, pixels: int, channels: int, groups: int) -> NormGrid:
        depth = channels // groups
        fitting = range(1, max(1, min(_SLOTS, groups, _BLOCK // depth)) + 1)
        wide = [each for each in fitting if each * depth % _WIDE == 0]
        each = max(wide or fitting)
        block = max(_BLOCK, 1 << (depth - 1).bit_length())
        blocks = -(-groups // each)
        rows = max(1, _TILE // block)
        most = max(1, min(_MOST_CHUNKS, _PROGRAMS // (images * blocks)))
        tiles = -(-pixels // (most * rows))
        align = math.gcd(each * depth, channels, _WIDE)
        return NormGrid(each, blocks, block, align, rows, tiles, -(-pixels // (tiles * rows)))


class GroupNormed(torch.autograd.Function):
    """See ``group_norm``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        shift: torch.Tensor | None,
        groups: int,
        eps: float,
        activated: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from adapters.diffusion.fused import kernels

        x = _channels_last(x)
        n, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
        cut = NormGrid.of(n, pixels, channels, groups)
        partial = torch.empty(n * groups, cut.chunks, 2, device=x.device, dtype=torch.float32)
        stats = torch.empty(n * groups, 2, device=x.device, dtype=torch.float32)
        y = torch.empty_like(x)
        moved = bias if shift is None else shift
        stride = 0 if shift is None else shift.stride(0)
        depth = channels // groups
        strips, span = channels // cut.align, cut.each * depth // cut.align
        shape = (pixels, strips, span, groups, depth, cut.each, cut.tiles, stride)
        grid = (cut.chunks, cut.blocks, n)
        options = {"SHIFTED": shift is not None, "ROWS": cut.rows, "BLOCK": cut.block}
        options |= {"SLOTS": _SLOTS, "ALIGN": cut.align, "num_warps": _WARPS}
        kernels.moments[grid](x, moved, partial, *shape, **options)
        options["ACTIVATED"] = activated
        kernels.normalise[grid](
            *(x, moved, weight, bias, partial, stats, y, *shape, eps), **options, MOST=_MOST_CHUNKS
        )
        ctx.save_for_backward(x, moved, weight, bias, stats)
        ctx.launch = grid, shape, options
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        from adapters.diffusion.fused import kernels

        of_y, other = gradients
        if of_y is None:
            return other, *[None] * 6
        dy, skipped = _channels_last(of_y), other is not None
        other = dy if other is None else _channels_last(other)
        x, moved, weight, bias, stats = ctx.saved_tensors
        grid, shape, options = ctx.launch
        partial = torch.empty(len(stats), grid[0], 2, device=x.device, dtype=torch.float32)
        dx = torch.empty_like(x)
        given = (dy, x, moved, weight, bias, stats, partial)
        kernels.gradient_sums[grid](*given, *shape, **options)
        kernels.gradient_through[grid](
            *(*given, other, dx, *shape), **options, SKIPPED=skipped, MOST=_MOST_CHUNKS
        )
        return dx, *[None] * 6


class LayerNormed(torch.autograd.Function):
    """See ``layer_norm``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        plus: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from adapters.diffusion.fused import kernels

        x = x.contiguous()
        other = x if plus is None else plus.contiguous()
        total = x if plus is None else torch.empty_like(x)
        y = torch.empty_like(x)
        width = x.shape[-1]
        rows = x.numel() // width
        stats = torch.empty(rows, 2, device=x.device, dtype=torch.float32)
        block = 1 << (width - 1).bit_length()
        each = max(1, _STRETCH // block)
        grid = (-(-rows // each),)
        kernels.layer_norm[grid](
            *(x, other, weight, bias, total, y, stats, rows, width, eps),
            ADDED=plus is not None,
            ROWS=each,
            BLOCK=block,
        )
        ctx.save_for_backward(total, weight, stats)
        ctx.cut = grid, rows, width, each, block, plus is not None
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        from adapters.diffusion.fused import kernels

        of_y, other = gradients
        total, weight, stats = ctx.saved_tensors
        grid, rows, width, each, block, added = ctx.cut
        if of_y is None:
            return other, other if added else None, None, None, None
        dy, skipped = of_y.contiguous(), other is not None
        other = dy if other is None else other.contiguous()
        dx = torch.empty_like(total)
        kernels.layer_norm_gradient[grid](
            *(dy, other, total, weight, stats, dx, rows, width),
            SKIPPED=skipped,
            ROWS=each,
            BLOCK=block,
        )
        return dx, dx if added else None, None, None, None


class Gated(torch.autograd.Function):
    """See ``gated``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        from adapters.diffusion.fused import kernels

        x = x.contiguous()
        width = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], width)
        rows = y.numel() // width
        ctx.launch = (-(-rows // _ROWS), -(-width // _COLUMNS)), rows, width
        grid, *shape = ctx.launch
        kernels.gate[grid](x, y, *shape, ROWS=_ROWS, BLOCK=_COLUMNS)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        from adapters.diffusion.fused import kernels

        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        dy = gradients[0].contiguous()
        grid, *shape = ctx.launch
        kernels.gate_gradient[grid](dy, x, dx, *shape, ROWS=_ROWS, BLOCK=_COLUMNS)
        return dx


class Added(torch.autograd.Function):
    """See ``added``."""

    @staticmethod
    def forward(_: Any, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        from adapters.diffusion.fused import kernels

        a, b = _channels_last(a), _channels_last(b)
        y = torch.empty_like(a)
        grid = (-(-a.numel() // _STRETCH),)
        channels = a.shape[1]
        kernels.add[grid](a, b, bias, y, a.numel(), channels, 1 / channels, BLOCK=_STRETCH)
        return y

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        return gradients[0], gradients[0], None


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)
