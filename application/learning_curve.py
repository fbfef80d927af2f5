"""What a run's history says: which epoch was best, and whether it went on for too long."""

from __future__ import annotations

from collections.abc import Sequence

from application.ports import EpochRecord

OVERFITTING = 0.05
"""Share by which the held-out loss may rise above its lowest before it is told."""


def best_epoch(history: Sequence[EpochRecord]) -> EpochRecord | None:
    """The measured epoch with the lowest loss on held-out pictures, else on those trained on.

    None where nothing was measured. Of equals the earliest.
    """
    held_out = [record for record in history if record.validation_loss is not None]
    measured = held_out or [record for record in history if record.evaluation_loss is not None]
    return min(measured, key=_measured_loss, default=None)


def overfitting_note(history: Sequence[EpochRecord]) -> str | None:
    """In words for the artist, that the pictures are being learnt by heart; None if they are not.

    That is: the loss on held-out pictures has risen since its lowest, while that on the pictures
    trained on has fallen.
    """
    measured = [record for record in history if record.validation_loss is not None]
    best = best_epoch(measured)
    if best is None or best.validation_loss is None:
        return None
    last = measured[-1]
    assert last.validation_loss is not None  # only such are in ``measured``
    rise = last.validation_loss / best.validation_loss - 1
    fell = (last.evaluation_loss or 0) < (best.evaluation_loss or 0)
    if rise <= OVERFITTING or not fell:
        return None
    return (
        f"On pictures held out, the loss was lowest in epoch {best.epoch} and has risen by "
        f"{rise:.0%} since, while on the pictures trained on it went on falling: the style begins "
        f"to learn its pictures by heart. About {best.epoch} epochs are enough."
    )


def _measured_loss(record: EpochRecord) -> float:
    loss = record.validation_loss
    loss = record.evaluation_loss if loss is None else loss
    assert loss is not None  # only measured epochs are compared
    return loss
