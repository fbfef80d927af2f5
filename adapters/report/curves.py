"""Plot loss, learning rate and gradient norm over the epochs of a run."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from adapters.report.colours import ACCENT, FAINT, INK, PAPER
from domain.loss_curve import EpochRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes


WIDTH, LOSS_HEIGHT, GRADIENT_HEIGHT = 1600, 800, 400
"""Size of the drawing in pixels."""
_DPI = 250


def plot_curves(history: Sequence[EpochRecord], base_loss: float | None = None) -> bytes:
    """A PNG of the loss per epoch and, if known, the base's loss, and the gradient norms below.

    Its width is ``WIDTH``, its height ``LOSS_HEIGHT``, plus ``GRADIENT_HEIGHT`` with norms.
    """
    # Not pyplot, which keeps figures in global state and looks for a display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    heights = [LOSS_HEIGHT, GRADIENT_HEIGHT][: 2 if has_gradients(history) else 1]
    size = (WIDTH / _DPI, sum(heights) / _DPI)
    figure = Figure(figsize=size, dpi=_DPI, facecolor=PAPER, layout="constrained")
    every = figure.subplots(
        len(heights), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    shown = [*every, _plot_loss(every[0], history, base_loss)]
    if len(every) == 2:
        _plot_gradients(every[1], history)
    every[-1].set_xlabel("epoch", color=INK)
    every[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in shown:
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelcolor=FAINT)
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def curves_in_words(history: Sequence[EpochRecord], base_loss: float | None = None) -> str:
    """Text alternative for the image of ``plot_curves``."""
    first, last = history[0], history[-1]
    words = (
        f"Curve of the loss per epoch: {first.loss:.4f} in epoch {first.epoch}, {last.loss:.4f} "
        f"in epoch {last.epoch}; the learning rate beside it"
    )
    if base_loss is not None:
        words += f"; a line at {base_loss:.4f}, the measured loss of the base model"
    means = _points(history, [record.gradient_norm for record in history])
    largest = _points(history, [record.largest_gradient_norm for record in history])
    if means:
        words += "; below it the mean gradient norm: " + ", ".join(
            f"{norm:.3g} in epoch {epoch}" for epoch, norm in dict([means[0], means[-1]]).items()
        )
    if largest:
        epoch, norm = max(largest, key=lambda point: point[1])
        words += f"; the largest of any step was {norm:.3g}, in epoch {epoch}"
    return words


def has_gradients(history: Sequence[EpochRecord]) -> bool:
    """Whether any epoch has a gradient norm."""
    return any(record.gradient_norm is not None for record in history)


def _plot_loss(axes: Axes, history: Sequence[EpochRecord], base_loss: float | None) -> Axes:
    """Plot the loss, in a long run with its moving average. Returns the learning rate's axes."""
    epochs = [record.epoch for record in history]
    losses = [record.loss for record in history]
    rate = axes.twinx()
    # The twin axes would cover the loss: put them behind it, and make the front transparent.
    axes.set_zorder(rate.get_zorder() + 1)
    axes.patch.set_visible(False)

    rate.plot(
        epochs, [record.learning_rate for record in history], color="#c8874b", lw=1.2, ls=":"
    )
    rate.set_ylabel("learning rate (dotted)", color="#99602a")
    rate.set_ylim(bottom=-0.02 * max(record.learning_rate for record in history))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)

    width = max(1, len(losses) // 10)
    marker = "o" if len(losses) < 3 else None
    label = "loss per epoch"
    if width > 1:
        axes.plot(epochs, losses, color=ACCENT, alpha=0.35, lw=1, label=label)
        label = f"mean of the last {width} epochs"
        losses = [sum(losses[end - width : end]) / width for end in range(width, len(losses) + 1)]
    axes.plot(epochs[width - 1 :], losses, color=ACCENT, lw=2, marker=marker, label=label)
    for label, colour, values in (
        ("measured, training images", "#5d8a4e", [r.evaluation_loss for r in history]),
        ("measured, held-out images", "#a8443f", [r.validation_loss for r in history]),
    ):
        if points := _points(history, values):
            axes.plot(
                *zip(*points, strict=True), color=colour, lw=1.2, marker=".", ls="--", label=label
            )
    if base_loss is not None:
        label = "measured, base model"
        axes.axhline(base_loss, color=FAINT, lw=1.2, ls="-.", label=label)
    axes.set_ylabel("loss", color=ACCENT)
    axes.grid(axis="y", color=FAINT, alpha=0.18)
    legend_above(axes)
    return rate


def _plot_gradients(axes: Axes, history: Sequence[EpochRecord]) -> None:
    marker = "o" if len(history) < 3 else None
    for label, style, values in (
        (
            "largest of the epoch",
            {"alpha": 0.35, "lw": 1},
            [r.largest_gradient_norm for r in history],
        ),
        ("mean of the epoch", {"lw": 2}, [r.gradient_norm for r in history]),
    ):
        if points := _points(history, values):
            axes.plot(
                *zip(*points, strict=True), color=ACCENT, marker=marker, label=label, **style
            )
    axes.set_ylabel("gradient norm", color=ACCENT)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=FAINT, alpha=0.18)
    legend_above(axes)


def legend_above(axes: Axes) -> None:
    """Place the legend above the axes, clear of the curves."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        labelcolor=INK,
        fontsize="small",
    )


def _points(
    history: Sequence[EpochRecord], values: Sequence[float | None]
) -> list[tuple[int, float]]:
    """Epochs and values, without missing values."""
    pairs = zip(history, values, strict=True)
    return [(record.epoch, value) for record, value in pairs if value is not None]
