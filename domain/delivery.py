"""Choose the epoch whose weights become the style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev

from domain.failure import Failure, FailureCode
from domain.loss_curve import EpochRecord, measured_loss
from domain.parameters import Delivery, TrainingParameters

STANDARD_ERRORS = 2.0
"""A mean difference beyond this many standard errors counts: about 95 % in a paired t-test
(Student, 1908), whose exact factor for sixteen differences is 2.13."""
SECOND_TRY = 0.1
"""Factor by which a second try lowers the learning rate."""
NOT_LEARNED = Failure(
    FailureCode.STYLE_NOT_LEARNED,
    "The training did not learn the style: the model matches your images no better with the style "
    "than without it. Please choose images that share one style, and try again with the default "
    "settings.",
)


def is_worse(record: EpochRecord, other: EpochRecord) -> bool:
    """Whether a measured loss is higher than another of the same run by more than its noise.

    Both are means over the same images, noises and timesteps. Most of the noise is common to both
    and cancels in the differences of the single predictions; what is left in them gives the
    standard error of the mean difference. False if one was not measured.
    """
    if not record.prediction_losses or not other.prediction_losses:
        return False
    pairs = zip(record.prediction_losses, other.prediction_losses, strict=True)
    differences = [loss - other_loss for loss, other_loss in pairs]
    if len(differences) < 2:
        return differences[0] > 0
    error = stdev(differences) / math.sqrt(len(differences))
    return fmean(differences) > STANDARD_ERRORS * error


def epochs_to_deliver(
    history: Sequence[EpochRecord], baseline: EpochRecord | None, deliver: Delivery
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
    limit = math.inf if baseline is None else measured_loss(baseline)
    learnt = sorted((r for r in measured if measured_loss(r) <= limit), key=measured_loss)
    if not learnt:
        return []
    sound = last in learnt and not is_worse(last, learnt[0])
    if deliver is Delivery.LAST or (deliver is Delivery.AUTO and sound):
        return [last]
    return learnt[: learnt.index(last) + 1] if last in learnt else learnt


def has_diverged(history: Sequence[EpochRecord], baseline: EpochRecord | None) -> bool:
    """Whether the last epoch is worse than the base by more than the noise of the loss."""
    return baseline is not None and is_worse(history[-1], baseline)


def with_lower_learning_rate(parameters: TrainingParameters) -> TrainingParameters:
    """The parameters of a second try."""
    text = parameters.text_encoder_lr
    return replace(
        parameters,
        learning_rate=parameters.learning_rate * SECOND_TRY,
        text_encoder_lr=None if text is None else text * SECOND_TRY,
    )
