"""Whether the fused kernels work on this machine, found out by running them."""

from __future__ import annotations

import logging
from functools import cache

import torch

from adapters.diffusion.fused.operations import added, gated, group_norm

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
    """Forward and backward, in float32, beside the CPU."""
    generator = torch.Generator().manual_seed(0)
    norm = torch.nn.GroupNorm(4, 40).requires_grad_(False)
    on_card = torch.nn.GroupNorm(4, 40, device=device).requires_grad_(False)
    x, gradient = torch.randn(2, 1, 40, 8, 8, generator=generator)
    shift = torch.randn(1, 40, generator=generator)

    def run(x: torch.Tensor, shift: torch.Tensor, norm: torch.nn.GroupNorm) -> torch.Tensor:
        x = x.clone().requires_grad_()
        h = added(group_norm(x, norm, shift=shift, activated=True), x, norm.bias)
        tokens = gated(h.permute(0, 2, 3, 1)).sum(dim=-1)
        (found,) = torch.autograd.grad((tokens * gradient.to(x.device)[:, 0]).sum(), x)
        return found.cpu()

    found = run(x.to(device), shift.to(device), on_card)
    return torch.allclose(found, run(x, shift, norm), rtol=_WITHIN, atol=_WITHIN)
