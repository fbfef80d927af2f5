"""What happens when an epoch's loss, gradient or weights are not finite: the run goes back to its
last good state and continues with half the learning rate."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from domain.failure import Failure, FailureCode, TrainingFailed

MAX_ROLLBACKS = 3
_SLOWER = 0.5


@dataclass(frozen=True)
class EpochReadings:
    """What an epoch's steps have added up on the device, read in one go."""

    loss: float
    """Sum over the epoch's images."""
    gradient_norm: float
    """Sum over the epoch's steps, each before clipping."""
    largest_gradient_norm: float
    moved: float
    """The largest change of a weight since the last good state."""

    @property
    def finite(self) -> bool:
        """False as soon as one step's loss, gradient or weight was not a number."""
        return all(map(math.isfinite, astuple(self)))


@dataclass(frozen=True)
class Rollbacks:
    """How often a run has gone back. Saved in the checkpoint."""

    count: int = 0

    @property
    def lr_factor(self) -> float:
        """Factor of the scheduled learning rate, for the rest of the run."""
        return float(_SLOWER**self.count)

    def one_more(self, epoch: int) -> Rollbacks:
        """After one more rollback.

        Raises:
            TrainingFailed: LOSS_DIVERGED, naming ``epoch``: there have been ``MAX_ROLLBACKS``.
        """
        if self.count < MAX_ROLLBACKS:
            return Rollbacks(self.count + 1)
        message = (
            f"The training became unstable in epoch {epoch} and could not go on. "
            "Please try again with a lower learning rate."
        )
        raise TrainingFailed(Failure(FailureCode.LOSS_DIVERGED, message))
