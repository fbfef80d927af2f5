"""What a history tells of the best epoch and of overfitting."""

from __future__ import annotations

from application.learning_curve import best_epoch, overfitting_note
from application.ports import EpochRecord


def history(*losses: tuple[float | None, float | None]) -> list[EpochRecord]:
    """Epochs measured with (loss of pictures trained on, loss of pictures held out)."""
    return [EpochRecord(n, 0.5, 1e-4, *pair) for n, pair in enumerate(losses, start=1)]


def test_without_a_measurement_no_epoch_is_the_best() -> None:
    assert best_epoch([]) is None
    assert best_epoch(history((None, None), (None, None))) is None


def test_the_best_epoch_has_the_lowest_loss_on_pictures_trained_on() -> None:
    best = best_epoch(history((0.3, None), (None, None), (0.1, None), (0.2, None)))
    assert best is not None
    assert best.epoch == 3


def test_pictures_held_out_decide_where_there_are_any() -> None:
    best = best_epoch(history((0.3, 0.30), (0.2, 0.25), (0.1, 0.28)))
    assert best is not None
    assert best.epoch == 2


def test_of_equal_epochs_the_earliest_is_the_best() -> None:
    best = best_epoch(history((0.3, 0.2), (0.2, 0.1), (0.1, 0.1)))
    assert best is not None
    assert best.epoch == 2


def test_a_held_out_loss_that_rises_while_the_other_falls_is_told_with_figures() -> None:
    note = overfitting_note(history((0.3, 0.30), (0.2, 0.25), (None, None), (0.1, 0.28)))
    assert note is not None
    assert "epoch 2" in note
    assert "12%" in note


def test_what_is_no_overfitting_is_not_told() -> None:
    assert overfitting_note([]) is None
    assert overfitting_note(history((0.3, None), (0.1, None))) is None
    # Still falling; risen by a hair; both risen, which is instability.
    assert overfitting_note(history((0.3, 0.3), (0.2, 0.2))) is None
    assert overfitting_note(history((0.3, 0.200), (0.2, 0.205))) is None
    assert overfitting_note(history((0.2, 0.2), (0.4, 0.4))) is None
