"""What happens when an epoch's loss, gradient or weights are not finite: the run goes back to its
last good state and continues with half the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from domain.failure import Failure, FailureCode, TrainingFailed

MAX_ROLLBACKS = 3
_SLOWER = 0.5


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
