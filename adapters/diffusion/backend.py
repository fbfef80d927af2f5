"""How a device trains fastest: one choice, made at the start from what the device can do."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adapters.diffusion.fused.self_test import kernels_work

_MIN_FOR_GRAPHS = (7, 0)
"""Compute capability from which CUDA graphs of whole passes are worth their memory."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """How steps are run. Every choice changes the speed, none the mathematics."""

    dtype: torch.dtype = torch.float32
    """Of the frozen weights and of every product with them. The LoRA weights, their gradient and
    the optimizer's state are float32 always."""
    merged_lora: bool = False
    """Where one style is active, compute a linear layer as ``(weight + up down) x``: for float32
    on a CPU. In 16 bits the sum would round the LoRA away."""
    cuda_graphs: bool = False
    """Record each pass once per shape of its batch and replay it: one launch, not thousands."""
    channels_last: bool = False
    """Keep the UNet's weights and feature maps with the channels innermost."""
    fused: bool = False
    """Pass over feature maps once where torch passes several times (``fused.operations``). Goes
    with ``channels_last``, the layout that its kernels read."""

    @property
    def loss_scaling(self) -> bool:
        """Whether gradients need scaling to survive the narrow range of float16."""
        return self.dtype == torch.float16


CPU = Backend(merged_lora=True)
"""Eager, in float32."""


def compute_on(device: torch.device | str) -> torch.dtype:
    """The precision of the fastest way that the device offers; asks nothing else of it."""
    device = torch.device(device)
    if device.type != "cuda":
        return torch.float32
    capability = torch.cuda.get_device_capability(device)
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


def choose_backend(device: torch.device | str) -> Backend:
    """The fastest way that the device offers.

    bfloat16 where the hardware has it (compute capability 8.0 and above), float16 with loss
    scaling on older cards, float32 on a CPU.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return CPU
    capability, dtype = torch.cuda.get_device_capability(device), compute_on(device)
    return Backend(
        dtype=dtype,
        cuda_graphs=capability >= _MIN_FOR_GRAPHS,
        channels_last=True,
        fused=kernels_work(device, dtype),
    )


def describe(backend: Backend) -> str:
    """The choice in a line for the log."""
    parts = [str(backend.dtype).removeprefix("torch.")]
    parts += ["loss scaling"] if backend.loss_scaling else []
    parts += ["CUDA graphs" if backend.cuda_graphs else "eager steps"]
    parts += ["channels last"] if backend.channels_last else []
    parts += ["fused kernels"] if backend.fused else []
    return ", ".join(parts)
