"""Test whether the fused kernels work on this machine by running them."""

from __future__ import annotations

import logging
from functools import cache

import torch

from adapters.diffusion.fused.operations import added, gated, group_norm, layer_norm

log = logging.getLogger(__name__)

_WITHIN = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Tolerance as a share of the gradient's standard deviation."""


@cache
def kernels_work(device: torch.device, compute: torch.dtype) -> bool:
    """Run each kernel in float32 and in the precision that the device computes in, and compare it
    with torch. The result is cached for the process.

    Triton comes with torch on Linux, and needs a C compiler at run time.
    """
    try:
        right = all(
            _agree(device, dtype, changed=changed)
            for dtype in dict.fromkeys([torch.float32, compute])
            for changed in (True, False)
        )
    except Exception as error:  # any error of Triton, the compiler or the driver
        log.warning(
            "fused kernels are off: %s: %s", type(error).__name__, str(error).split("\n")[0]
        )
        return False
    if not right:
        log.warning("fused kernels are off: their results differ from torch's on this GPU")
    return right


def _agree(device: torch.device, dtype: torch.dtype, *, changed: bool) -> bool:
    """Compare forward and backward through all kernels with float32 on the CPU.

    Args:
        changed: with a shift before the group norm and SiLU after it.
    """
    draw = torch.Generator().manual_seed(0)
    x, shift, gradient = (
        torch.randn(shape, generator=draw) for shape in [(1, 40, 8, 8), (1, 40), (1, 40, 8, 8)]
    )
    found, wanted = (
        _gradient(*(t.to(there, precision) for t in (x, shift, gradient)), changed=changed)
        for there, precision in ((device, dtype), ("cpu", torch.float32))
    )
    apart = (found.cpu().float() - wanted).abs().max()
    return bool(apart <= _WITHIN[dtype] * wanted.std())


def _gradient(
    x: torch.Tensor, shift: torch.Tensor, gradient: torch.Tensor, *, changed: bool
) -> torch.Tensor:
    """Gradient of (n, c, h, w) through every operation; both results of an operation are used."""
    groups = torch.nn.GroupNorm(4, x.shape[1]).to(x.device, x.dtype).requires_grad_(False)
    rows = torch.nn.LayerNorm(x.shape[1]).to(x.device, x.dtype).requires_grad_(False)
    x = x.clone().requires_grad_()
    normal, skip = group_norm(x, groups, shift=shift if changed else None, activated=changed)
    tokens = added(normal, skip, shift[0]).permute(0, 2, 3, 1)
    normal, total = layer_norm(tokens, rows, plus=tokens)
    end = gated(normal).sum(dim=-1) + total.sum(dim=-1)
    (found,) = torch.autograd.grad((end * gradient.sum(dim=1)).sum(), x)
    return found
