"""The loss curve of a run, and what it shows: which epochs to deliver, overfitting, stall."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from domain.parameters import DeliveredEpoch
from domain.results import TrainingMetric

STANDARD_ERRORS = 2.0
"""A mean difference beyond this many standard errors counts: about 95 % in a paired t-test
(Student, 1908), whose exact factor for sixteen differences is 2.13."""
OVERFITTING = 0.05
"""Relative rise of the validation loss above its minimum that is reported as overfitting."""


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


def measured_loss(record: EpochRecord) -> float:
    """The measured loss of an evaluated epoch; infinity for NaN, which does not compare."""
    assert record.measured_loss is not None  # only evaluated epochs are compared
    return math.inf if math.isnan(record.measured_loss) else record.measured_loss


def best_epoch(history: Sequence[EpochRecord]) -> EpochRecord | None:
    """The evaluated epoch with the lowest validation loss; without held-out images, the one with
    the lowest loss on training images. The earliest of equal epochs; None if none was evaluated.
    """
    held_out = [record for record in history if record.validation_loss is not None]
    measured = held_out or [record for record in history if record.evaluation_loss is not None]
    return min(measured, key=measured_loss, default=None)


def last_measured_loss(history: Sequence[EpochRecord]) -> float | None:
    """The newest measured loss; None if no epoch was evaluated."""
    losses = (record.measured_loss for record in reversed(history))
    return next((loss for loss in losses if loss is not None), None)


def is_worse(record: EpochRecord, other: EpochRecord) -> bool:
    """Whether a measured loss is higher than another of the same run by more than its noise.

    Both are means over the same images, noises and timesteps. Most of the noise is common to both
    and cancels in the differences of the single predictions; what is left in them gives the
    standard error of the mean difference. False if one was not measured.
    """
    if not record.prediction_losses or not other.prediction_losses:
        return False
    if not all(map(math.isfinite, (*record.prediction_losses, *other.prediction_losses))):
        return measured_loss(record) > measured_loss(other)
    pairs = zip(record.prediction_losses, other.prediction_losses, strict=True)
    differences = [loss - other_loss for loss, other_loss in pairs]
    if len(differences) < 2:
        return differences[0] > 0
    error = stdev(differences) / math.sqrt(len(differences))
    return fmean(differences) > STANDARD_ERRORS * error


def epochs_to_deliver(
    history: Sequence[EpochRecord], baseline: EpochRecord | None, deliver: DeliveredEpoch
) -> list[EpochRecord]:
    """The epochs that may become the style, in order of preference.

    None of them has a higher measured loss than the base, except the last epoch if ``deliver``
    is LAST. Empty if every evaluated epoch is worse than the base: the style is not learnt.

    Args:
        baseline: epoch 0: the base model's losses.
    """
    last = history[-1]
    measured = [record for record in history if record.measured_loss is not None]
    if not measured:
        return [last]
    # Losses that are not finite are never within the limit.
    limit = sys.float_info.max if baseline is None else measured_loss(baseline)
    learnt = sorted(
        (r for r in measured if measured_loss(r) <= limit < math.inf), key=measured_loss
    )
    if not learnt:
        return []
    sound = last in learnt and not is_worse(last, learnt[0])
    if deliver is DeliveredEpoch.LAST or (deliver is DeliveredEpoch.AUTO and sound):
        return [last]
    return learnt[: learnt.index(last) + 1] if last in learnt else learnt


def has_diverged(history: Sequence[EpochRecord], baseline: EpochRecord | None) -> bool:
    """Whether the last epoch is worse than the base by more than the noise of the loss."""
    return baseline is not None and is_worse(history[-1], baseline)


def metric_of(
    history: Sequence[EpochRecord],
    baseline: EpochRecord | None,
    total_steps: int,
    delivered: EpochRecord,
) -> TrainingMetric:
    """The metrics of a finished run whose epoch ``delivered`` becomes the style.

    Args:
        baseline: epoch 0, the base model's losses; None if the run has no evaluations.
    """
    last, best = history[-1], best_epoch(history)
    return TrainingMetric(
        loss=last.loss,
        epochs=last.epoch,
        steps=total_steps,
        best_epoch=best.epoch if best else None,
        delivered_epoch=delivered.epoch,
        measured_loss=delivered.measured_loss,
        base_loss=baseline.measured_loss if baseline else None,
    )


def overfitting_note(history: Sequence[EpochRecord]) -> str | None:
    """A warning for the artist about overfitting, or None.

    Overfitting: the validation loss has risen since its minimum while the training loss fell.
    """
    measured = [record for record in history if record.validation_loss is not None]
    best = best_epoch(measured)
    if best is None or best.validation_loss is None:
        return None
    last = measured[-1]
    assert last.validation_loss is not None  # ``measured`` has no others
    rise = last.validation_loss / best.validation_loss - 1
    fell = (last.evaluation_loss or 0) < (best.evaluation_loss or 0)
    if rise <= OVERFITTING or not fell:
        return None
    return (
        f"On the held-out images, the loss was lowest in epoch {best.epoch} and has risen by "
        f"{rise:.0%} since, while it kept falling on the training images: the style "
        f"begins to memorise its images. About {best.epoch} epochs are enough."
    )


def stall_note(history: Sequence[EpochRecord]) -> str | None:
    """A note with the epochs in which nothing was learnt, and remedies; None if there are none."""
    still = [record for record in history if record.stalled]
    if not still:
        return None
    causes = []
    # Without a gradient norm, both causes are possible.
    if any(record.largest_gradient_norm != 0 for record in still):
        rate = max(record.learning_rate for record in still)
        causes.append(
            f"the style's weights did not change. The learning rate, {rate:g} at most in these "
            "epochs, is too low: raise it"
        )
    if any(not record.largest_gradient_norm for record in still):
        causes.append(
            "no gradient reached the style's weights. Check whether images and captions have "
            "anything to learn from"
        )
    when = _epochs([record.epoch for record in still])
    return f"The training stalled in {when}: {'. Or '.join(causes)}."


def _epochs(numbers: Sequence[int]) -> str:
    """Format epoch numbers: "epoch 4", "epochs 1 to 3 and 7"."""
    stretches: list[list[int]] = []
    for number in numbers:
        if stretches and number == stretches[-1][-1] + 1:
            stretches[-1].append(number)
        else:
            stretches.append([number])
    words = [f"{s[0]} to {s[-1]}" if len(s) > 1 else f"{s[0]}" for s in stretches]
    named = " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
    return f"epoch{'s' if len(numbers) > 1 else ''} {named}"
