"""Failures of the device, in the domain's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from domain.failure import Failure, FailureCode, TrainingFailed


@contextmanager
def out_of_memory_is_a_failure() -> Iterator[None]:
    """Turn a full card into ``TrainingFailed`` with GPU_OOM."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        message = (
            "The graphics card's memory did not suffice for this training. "
            "Please ask for a smaller resolution or batch size."
        )
        raise TrainingFailed(Failure(FailureCode.GPU_OOM, message)) from error


def loss_diverged(epoch: int) -> TrainingFailed:
    """The failure of a run whose loss stopped being a number in ``epoch``."""
    message = (
        f"The training became unstable in epoch {epoch} and could not go on. "
        "Please try again with a lower learning rate."
    )
    return TrainingFailed(Failure(FailureCode.LOSS_DIVERGED, message))
