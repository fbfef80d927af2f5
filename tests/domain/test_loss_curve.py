"""Diagnostics from the history: best epoch, overfitting, stalled training."""

from __future__ import annotations

import pytest

from domain.loss_curve import EpochRecord, best_epoch, overfitting_note, stall_note


def history(*losses: tuple[float | None, float | None]) -> list[EpochRecord]:
    """Epochs measured with (loss of images trained on, loss of images held out)."""
    return [EpochRecord(n, 0.5, 1e-4, *pair) for n, pair in enumerate(losses, start=1)]


def test_without_a_measurement_no_epoch_is_the_best() -> None:
    assert best_epoch([]) is None
    assert best_epoch(history((None, None), (None, None))) is None


def test_the_best_epoch_has_the_lowest_loss_on_images_trained_on() -> None:
    best = best_epoch(history((0.3, None), (None, None), (0.1, None), (0.2, None)))
    assert best is not None
    assert best.epoch == 3


def test_images_held_out_decide_where_there_are_any() -> None:
    best = best_epoch(history((0.3, 0.30), (0.2, 0.25), (0.1, 0.28), (0.1, None)))
    assert best is not None
    assert best.epoch == 2


def test_of_equal_epochs_the_earliest_is_the_best() -> None:
    best = best_epoch(history((0.3, 0.2), (0.2, 0.1), (0.1, 0.1)))
    assert best is not None
    assert best.epoch == 2


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_an_epoch_whose_loss_is_not_finite_is_not_the_best(broken: float) -> None:
    best = best_epoch(history((broken, None), (0.2, None), (broken, None)))
    assert best is not None
    assert best.epoch == 2


def test_a_rising_held_out_loss_with_a_falling_training_loss_is_reported() -> None:
    losses = (0.3, 0.30), (0.2, 0.25), (None, None), (0.1, 0.28), (None, None)
    note = overfitting_note(history(*losses))
    assert note is not None
    assert "epoch 2" in note
    assert "12%" in note


def test_other_loss_curves_are_not_reported_as_overfitting() -> None:
    assert overfitting_note([]) is None
    assert overfitting_note(history((0.3, None), (0.1, None))) is None
    # Still falling; risen by a hair; nothing learnt by heart; both risen, which is instability.
    assert overfitting_note(history((0.3, 0.3), (0.2, 0.2))) is None
    assert overfitting_note(history((0.3, 0.200), (0.2, 0.205))) is None
    assert overfitting_note(history((0.2, 0.2), (0.2, 0.4))) is None
    assert overfitting_note(history((0.2, 0.2), (0.4, 0.4))) is None


def still(*epochs: int, of: int = 20, largest: float | None = None) -> list[EpochRecord]:
    """A run of which ``epochs`` stood still, with that gradient norm in all epochs."""
    return [
        EpochRecord(
            n, 0.5, n * 1e-6, gradient_norm=largest, largest_gradient_norm=largest, stalled=True
        )
        if n in epochs
        else EpochRecord(n, 0.5, n * 1e-6)
        for n in range(1, of + 1)
    ]


@pytest.mark.parametrize(
    ("epochs", "words"),
    [
        ((4,), "in epoch 4:"),
        ((4, 6), "in epochs 4 and 6:"),
        ((1, 2, 3), "in epochs 1 to 3:"),
        ((1, 2, 3, 5, 7, 8), "in epochs 1 to 3, 5 and 7 to 8:"),
    ],
)
def test_stalled_epochs_are_named(epochs: tuple[int, ...], words: str) -> None:
    assert f"The training stalled {words}" in (stall_note(still(*epochs)) or "")


def test_weights_that_do_not_move_under_a_gradient_need_a_higher_learning_rate() -> None:
    note = stall_note(still(3, 4, largest=0.2))
    assert note is not None
    assert "The learning rate, 4e-06 at most in these epochs, is too low: raise it." in note
    assert "no gradient" not in note


def test_without_a_gradient_the_learning_rate_is_not_blamed() -> None:
    note = stall_note(still(3, 4, largest=0.0))
    assert note is not None
    assert "no gradient reached the style's weights" in note
    assert "learning rate" not in note


def test_a_trainer_without_gradient_norms_leaves_both_causes_open() -> None:
    note = stall_note(still(3))
    assert note is not None
    assert "too low: raise it. Or no gradient reached" in note


def test_both_reasons_of_stalled_epochs_are_reported() -> None:
    note = stall_note([*still(3, largest=0.0)[:3], *still(4, largest=0.2)[3:]])
    assert note is not None
    assert "too low: raise it. Or no gradient reached" in note


def test_a_run_that_learns_is_not_reported_as_stalled() -> None:
    assert stall_note([]) is None
    assert stall_note(still()) is None
