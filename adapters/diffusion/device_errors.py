"""Errors after which the device gives no more answers."""

from __future__ import annotations

import torch

from adapters.diffusion.oom import is_out_of_memory

_BEGINNINGS = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]")
"""Of errors that come from the card: an illegal access, a failed assertion, its memory."""


def is_broken_device(error: BaseException) -> bool:
    """Whether every later call of this process would fail: so it is after all errors of a card
    but a lack of memory (CUDA Runtime API, "cudaError")."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    newer = getattr(torch, "AcceleratorError", ())  # not in torch 2.6 yet
    return isinstance(error, newer) or str(error).startswith(_BEGINNINGS)
