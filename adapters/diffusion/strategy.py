"""How a device trains best: one choice, made once at the start from what the device can do."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adapters.diffusion.fused.self_test import kernels_work

_FIRST_WITH_CAPTURE = (7, 0)
"""Compute capability from which graphs of whole training steps are worth their memory."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """The ways in which a step may be run. Each changes the speed, none the mathematics."""

    compute: torch.dtype = torch.float32
    """Of the frozen weights and of every product with them. The adapters' weights, their
    gradient and the optimizer's state are float32 always."""
    flat_path: bool = False
    """Compute the adapters from one low-precision copy of all their matrices, made once a step;
    else layer by layer, as PEFT does."""
    capture: bool = False
    """Record the whole step per shape of its batch, and replay it: one launch, not thousands."""
    channels_last: bool = False
    """Keep the denoiser's weights and feature maps with the channels innermost."""
    fused: bool = False
    """Pass over feature maps once where torch passes several times (``fused.operations``). Goes
    with ``channels_last``, the layout that its kernels read."""

    @property
    def loss_scaling(self) -> bool:
        """Whether gradients need scaling to survive the narrow range of float16."""
        return self.compute == torch.float16


PLAIN = Strategy()
"""The reference: eager, in float32, as PEFT computes it. Runs on every device."""


def compute_on(device: torch.device | str) -> torch.dtype:
    """The precision of the fastest way that the device offers; asks nothing else of it."""
    device = torch.device(device)
    if device.type != "cuda":
        return torch.float32
    capability = torch.cuda.get_device_capability(device)
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


def choose_strategy(device: torch.device | str) -> Strategy:
    """The fastest way that the device offers.

    bfloat16 where the hardware has it (compute capability 8.0 and above), float16 with loss
    scaling on older cards. On a CPU the plain way, in float32.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return PLAIN
    capability, compute = torch.cuda.get_device_capability(device), compute_on(device)
    return Strategy(
        compute=compute,
        flat_path=True,
        capture=capability >= _FIRST_WITH_CAPTURE,
        channels_last=True,
        fused=kernels_work(device, compute),
    )


def describe(strategy: Strategy) -> str:
    """The choice in a line for the log."""
    parts = [str(strategy.compute).removeprefix("torch.")]
    parts += ["loss scaling"] if strategy.loss_scaling else []
    parts += ["one copy of the adapters"] if strategy.flat_path else []
    parts += ["captured steps" if strategy.capture else "eager steps"]
    parts += ["channels last"] if strategy.channels_last else []
    parts += ["fused passes"] if strategy.fused else []
    return ", ".join(parts)
