"""The loss curve of a run, one record for each epoch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EpochRecord:
    """One point of the loss curve."""

    epoch: int
    loss: float
    learning_rate: float
    evaluation_loss: float | None = None
    """Mean loss of training images over fixed noises and timesteps; None in epochs without an
    evaluation."""
    validation_loss: float | None = None
    """The same for held-out images; None if there are none."""
    gradient_norm: float | None = None
    """Mean over the epoch's steps, before clipping; None if the trainer does not measure it."""
    largest_gradient_norm: float | None = None
    stalled: bool = False
    """True if the weights did not change, or all gradients were zero, although the learning rate
    was high enough."""
    prediction_losses: tuple[float, ...] = ()
    """The single losses; ``measured_loss`` is their mean. The n-th loss of each measurement of a
    run has the same image, noise and timestep. Empty in epochs without an evaluation."""

    @property
    def measured_loss(self) -> float | None:
        """The validation loss; without held-out images, the evaluation loss."""
        return self.evaluation_loss if self.validation_loss is None else self.validation_loss
