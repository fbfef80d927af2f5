"""Use a device's memory for a while, and handle its out-of-memory errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from domain.failure import Failure, FailureCode, TrainingFailed

Result = TypeVar("Result")
Work = TypeVar("Work")

_MESSAGES = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "can't allocate memory",
)
"""Out-of-memory messages of libraries below torch, the driver, and torch's CPU allocator."""


@contextmanager
def on_device(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Move a frozen module to ``device`` for the with-block.

    The original tensors are kept and restored afterwards, so nothing is copied back.
    """
    home = next(module.parameters()).device
    if home == device:
        yield
        return
    held = [*module.parameters(), *module.buffers()]
    at_home = [tensor.data for tensor in held]
    try:
        for tensor in held:
            tensor.data = tensor.data.to(device, non_blocking=True)
        yield
    finally:
        for tensor, data in zip(held, at_home, strict=True):
            tensor.data = data


def split_on_oom(
    action: Callable[[Work], Result], work: Work, split: Callable[[Work], Sequence[Work]]
) -> list[Result]:
    """Run ``action`` on the whole work; on out-of-memory, on each of its parts.

    Args:
        split: returns one part if the work cannot be split.

    Raises:
        torch.OutOfMemoryError: the smallest part does not fit.
    """
    try:
        return [action(work)]
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(split(work)) == 1:
            raise
    return [result for part in split(work) for result in split_on_oom(action, part, split)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means out of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(message in str(error) for message in _MESSAGES)


@contextmanager
def oom_fails_the_run(*, retryable: bool = False) -> Iterator[None]:
    """Turn out-of-memory errors into ``TrainingFailed`` with GPU_OOM."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise gpu_oom(retryable=retryable) from error


def gpu_oom(*, retryable: bool = False) -> TrainingFailed:
    """The failure of a run that does not fit; retryable if it may fit without the others."""
    message = (
        "The GPU has too little memory for this training. "
        "Please choose a smaller resolution or batch size."
    )
    return TrainingFailed(Failure(FailureCode.GPU_OOM, message, retryable=retryable))
