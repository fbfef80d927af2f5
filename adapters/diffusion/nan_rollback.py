"""Roll a run back when an epoch's loss, gradient or weights are not finite: it returns to its
last good state and continues with half the learning rate."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from domain.failure import Failure, FailureCode, TrainingFailed

MAX_ROLLBACKS = 3
SLOWER = 0.5
"""Factor on the learning rate with each rollback, for the rest of the run."""


@dataclass(frozen=True)
class EpochReadings:
    """Sums over an epoch's steps, read from the device at once."""

    loss: float
    """Sum over the epoch's images."""
    gradient_norm: float
    """Sum of the norms before clipping, over the epoch's steps."""
    largest_gradient_norm: float
    largest_change: float
    """Largest change of any weight since the last good state."""

    @property
    def finite(self) -> bool:
        """False if any step's loss, gradient or weight was infinite or NaN."""
        return all(map(math.isfinite, astuple(self)))


def diverged(epoch: int) -> TrainingFailed:
    """The failure of a run that diverges again after ``MAX_ROLLBACKS`` rollbacks."""
    message = (
        f"The training became unstable in epoch {epoch} and could not go on. "
        "Please try again with a lower learning rate."
    )
    return TrainingFailed(Failure(FailureCode.LOSS_DIVERGED, message))
