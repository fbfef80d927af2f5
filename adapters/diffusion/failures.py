"""Failures of the device, in the domain's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from application.ports import TrainerBroken
from domain.failure import Failure, FailureCode, TrainingFailed

Answer = TypeVar("Answer")
Whole = TypeVar("Whole")

_OTHER_WORDS = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "can't allocate memory",
)
"""How libraries below torch, the driver, and torch's allocator on a CPU say that memory is out."""
_OF_THE_DEVICE = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]")
"""How errors begin that come from the card: an illegal access, a failed assertion, its memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that the device's memory did not suffice."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _OTHER_WORDS)


def is_of_a_broken_device(error: BaseException) -> bool:
    """Whether torch may get no more answers: after most errors of a card but a lack of memory,
    every later call of the process fails (CUDA Runtime API, "cudaError")."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    newer = getattr(torch, "AcceleratorError", ())  # not in torch 2.6 yet
    return isinstance(error, newer) or str(error).startswith(_OF_THE_DEVICE)


@contextmanager
def broken_device_breaks_the_trainer() -> Iterator[None]:
    """Turn an error of a card that answers no more into ``TrainerBroken``. Also a decorator."""
    try:
        yield
    except RuntimeError as error:
        if not is_of_a_broken_device(error):
            raise
        raise TrainerBroken(str(error).partition("\n")[0]) from error


def gpu_oom() -> TrainingFailed:
    """The failure of a run that no way of saving memory could fit in."""
    message = (
        "The graphics card's memory did not suffice for this training. "
        "Please ask for a smaller resolution or batch size."
    )
    return TrainingFailed(Failure(FailureCode.GPU_OOM, message))


@contextmanager
def out_of_memory_is_a_failure() -> Iterator[None]:
    """Turn a full card into ``TrainingFailed`` with GPU_OOM."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise gpu_oom() from error


def with_room(action: Callable[[], Answer], make_room: Callable[[], object]) -> Answer:
    """What ``action`` gives; where memory does not suffice, at the second go, after ``make_room``.

    Raises:
        TrainingFailed: GPU_OOM, at the second go.
    """
    try:
        return action()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Behind the handler: an error holds the tensors of all that it came through.
    make_room()
    with out_of_memory_is_a_failure():
        return action()


def in_parts(
    action: Callable[[Whole], Answer], whole: Whole, split: Callable[[Whole], Sequence[Whole]]
) -> list[Answer]:
    """What ``action`` gives for the whole; where memory does not suffice, for each of its parts.

    Args:
        split: gives one part for what cannot be split.

    Raises:
        torch.OutOfMemoryError: not even that fits.
    """
    try:
        return [action(whole)]
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(split(whole)) == 1:
            raise
    return [answer for part in split(whole) for answer in in_parts(action, part, split)]


def loss_diverged(epoch: int) -> TrainingFailed:
    """The failure of a run whose loss stopped being a number in ``epoch``."""
    message = (
        f"The training became unstable in epoch {epoch} and could not go on. "
        "Please try again with a lower learning rate."
    )
    return TrainingFailed(Failure(FailureCode.LOSS_DIVERGED, message))
