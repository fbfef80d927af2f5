"""Whether the fused kernels work on this machine, found out by running them."""

from __future__ import annotations

import logging
from functools import cache

import torch

from adapters.diffusion.fused.operations import added, gated, group_norm_of, layer_norm_of

log = logging.getLogger(__name__)

_WITHIN = 1e-4


@cache
def kernels_work(device: torch.device) -> bool:
    """Run each kernel and compare it with torch. The answer stays for the process's life.

    Triton comes with torch for Linux, and needs a C compiler at run time.
    """
    try:
        right = _agree(device)
    except Exception as error:  # whatever Triton, the compiler or the driver objects to
        log.warning("no fused kernels: %s: %s", type(error).__name__, str(error).split("\n")[0])
        return False
    if not right:
        log.warning("no fused kernels: they give other numbers than torch on this card")
    return right


def _agree(device: torch.device) -> bool:
    """Forward and backward through all of them, in float32, beside the CPU."""
    draw = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(1, 40, 8, 8, generator=draw) for _ in range(2))
    shift = torch.randn(1, 40, generator=draw)
    found, wanted = (
        _gradient(*(tensor.to(there) for tensor in (x, shift, gradient))).cpu()
        for there in (device, torch.device("cpu"))
    )
    return torch.allclose(found, wanted, rtol=_WITHIN, atol=_WITHIN)


def _gradient(x: torch.Tensor, shift: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Of (n, c, h, w), through every operation, each result used twice where it can be."""
    channels = x.shape[1]
    groups = torch.nn.GroupNorm(4, channels, device=x.device).requires_grad_(False)
    rows = torch.nn.LayerNorm(channels, device=x.device).requires_grad_(False)
    x = x.clone().requires_grad_()
    normal, skip = group_norm_of(x, groups, shift=shift, activated=True)
    tokens = added(normal, skip, shift[0]).permute(0, 2, 3, 1)
    normal, total = layer_norm_of(tokens, rows, plus=tokens)
    end = gated(normal).sum(dim=-1) + total.sum(dim=-1)
    (found,) = torch.autograd.grad((end * gradient.sum(dim=1)).sum(), x)
    return found
