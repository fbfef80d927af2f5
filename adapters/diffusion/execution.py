"""Choose the fastest way to train on a device, once, at the start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from adapters.diffusion.cuda_graphs import CudaRecorder, Recorder
from adapters.diffusion.fused.self_test import kernels_work

_MIN_FOR_GRAPHS = (7, 0)
"""Compute capability from which CUDA graphs of whole passes are worth their memory."""


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How steps are run. The choices affect speed only; the mathematics is the same."""

    dtype: torch.dtype = torch.float32
    """Type of the frozen weights and of every product with them. LoRA weights, their gradient and
    the optimizer's state are always float32."""
    merged_lora: bool = False
    """With one active style, compute a linear layer as ``(weight + up down) x``: for float32 on a
    CPU. In 16 bits the sum would round the LoRA away."""
    make_recorder: Callable[[torch.device], Recorder] | None = None
    """Makes a recorder, which records each pass once per batch shape and replays it: one launch
    instead of thousands. None for eager passes."""
    channels_last: bool = False
    """Store the UNet's weights and feature maps with channels innermost."""
    fused: bool = False
    """Read feature maps once where torch reads them several times (``fused.operations``). Needs
    ``channels_last``, the layout that the kernels read."""


CPU = ExecutionOptions(merged_lora=True)
"""Eager, in float32."""


def compute_on(device: torch.device | str) -> torch.dtype:
    """The fastest precision on the device: bfloat16 from compute capability 8.0 on, float16 on
    older GPUs, float32 on a CPU. Runs no self-test."""
    device = torch.device(device)
    if device.type != "cuda":
        return torch.float32
    capability = torch.cuda.get_device_capability(device)
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


def choose_execution(device: torch.device | str) -> ExecutionOptions:
    """The fastest execution options for the device."""
    device = torch.device(device)
    if device.type != "cuda":
        return CPU
    capability, dtype = torch.cuda.get_device_capability(device), compute_on(device)
    return ExecutionOptions(
        dtype=dtype,
        make_recorder=CudaRecorder if capability >= _MIN_FOR_GRAPHS else None,
        channels_last=True,
        fused=kernels_work(device, dtype),
    )


def describe(execution: ExecutionOptions) -> str:
    """The options as one line for the log."""
    parts = [str(execution.dtype).removeprefix("torch.")]
    parts += ["loss scaling"] if execution.dtype == torch.float16 else []
    parts += ["CUDA graphs" if execution.make_recorder else "eager steps"]
    parts += ["channels last"] if execution.channels_last else []
    parts += ["fused kernels"] if execution.fused else []
    return ", ".join(parts)
