"""Errors after which the device can no longer be used."""

from __future__ import annotations

import torch

from adapters.common.device_memory import is_out_of_memory

_BEGINNINGS = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]")
"""How errors of the GPU begin: illegal access, failed assertion, memory fault."""


def is_broken_device(error: BaseException) -> bool:
    """Whether every later CUDA call of this process would fail. True for all GPU errors except
    out-of-memory (CUDA Runtime API, "cudaError")."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    newer = getattr(torch, "AcceleratorError", ())  # missing in torch 2.6
    return isinstance(error, newer) or str(error).startswith(_BEGINNINGS)
