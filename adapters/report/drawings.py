"""The report's drawings: curves of the run and of the previews' scores, previews side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, ImageOps

from domain.loss_curve import EpochRecord
from domain.results import Preview, PreviewScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The page inverts the drawings in dark mode.
PAPER = "#ffffff"
INK = "#26241f"
FAINT = "#76716a"
ACCENT = "#2f6690"

WIDTH, LOSS_HEIGHT, GRADIENT_HEIGHT, SCORES_HEIGHT = 1600, 800, 400, 560
"""Sizes of the curves in pixels."""
_DPI = 250
_GAP = 24
_LINE = 26
_TEXT_PIXELS = 18


def plot_curves(history: Sequence[EpochRecord], base_loss: float | None = None) -> bytes:
    """A PNG of the loss per epoch and, if known, the base's loss, and the gradient norms below.

    Its width is ``WIDTH``, its height ``LOSS_HEIGHT``, plus ``GRADIENT_HEIGHT`` with norms.
    """
    heights = [LOSS_HEIGHT, GRADIENT_HEIGHT][: 2 if has_gradients(history) else 1]
    figure = _figure(sum(heights))
    every = figure.subplots(
        len(heights), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    _plot_loss(every[0], history, base_loss)
    if len(every) == 2:
        _plot_gradients(every[1], history)
    return _rendered(figure, every[-1])


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


def _plot_loss(axes: Axes, history: Sequence[EpochRecord], base_loss: float | None) -> None:
    """Plot the loss, in a long run with its moving average, over the learning rate."""
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


def _points(
    history: Sequence[EpochRecord], values: Sequence[float | None]
) -> list[tuple[int, float]]:
    """Epochs and values, without missing values."""
    pairs = zip(history, values, strict=True)
    return [(record.epoch, value) for record, value in pairs if value is not None]


def plot_scores(scores: Mapping[int, PreviewScores]) -> bytes:
    """A PNG of closeness and faithfulness by epoch."""
    figure = _figure(SCORES_HEIGHT)
    axes = figure.subplots()
    epochs, values = list(scores), scores.values()
    axes.plot(
        epochs,
        [one.closeness for one in values],
        color=ACCENT,
        marker="o",
        label="closeness to the style",
    )
    axes.plot(
        epochs,
        [one.faithfulness for one in values],
        color="#5d8a4e",
        marker="s",
        ls="--",
        label="faithfulness to the prompts",
    )
    axes.set_ylim(bottom=min(0.0, *(one.closeness for one in values)) - 0.05, top=1.05)
    return _rendered(figure, axes)


def scores_in_words(scores: Mapping[int, PreviewScores]) -> str:
    """Text alternative for the image of ``plot_scores``."""
    return "Scores of the previews: " + "; ".join(
        f"epoch {epoch}: closeness {one.closeness:.2f}, faithfulness {one.faithfulness:.2f}"
        for epoch, one in scores.items()
    )


def _figure(height: int) -> Figure:
    # Not pyplot, which keeps figures in global state and looks for a display.
    from matplotlib.figure import Figure

    size = (WIDTH / _DPI, height / _DPI)
    return Figure(figsize=size, dpi=_DPI, facecolor=PAPER, layout="constrained")


def _rendered(figure: Figure, bottom: Axes) -> bytes:
    """The figure as a PNG, with legends above the curves, and the epochs below ``bottom``."""
    from matplotlib.ticker import MaxNLocator

    bottom.set_xlabel("epoch", color=INK)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in figure.axes:
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelcolor=FAINT)
        if axes.get_legend_handles_labels()[0]:
            axes.grid(axis="y", color=FAINT, alpha=0.18)
            axes.legend(
                loc="lower left",
                bbox_to_anchor=(0, 1),
                ncols=2,
                frameon=False,
                labelcolor=INK,
                fontsize="small",
            )
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def draw_previews(before: Sequence[Preview], after: Sequence[Preview]) -> bytes:
    """A PNG with a row for each prompt: the images before and after the training."""
    pairs = [
        [Image.open(BytesIO(preview.png)).convert("RGB") for preview in pair]
        for pair in zip(before, after, strict=True)
    ]
    side = max(max(image.size) for pair in pairs for image in pair)
    side = min(512, max(256, side))
    font = _font()
    titles = [
        [*_wrap(preview.prompt, font, 2 * side + _GAP), f"seed {preview.seed}"]
        for preview in before
    ]
    heights = [len(lines) * _LINE + _GAP // 2 + side for lines in titles]
    width = 2 * side + 3 * _GAP
    height = _LINE + 2 * _GAP + sum(heights) + 2 * _GAP * len(heights) - _GAP
    grid = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(grid)

    lefts = (_GAP, 2 * _GAP + side)
    for left, label in zip(lefts, ("before", "after"), strict=True):
        draw.text((left + side / 2, _GAP), label, ACCENT, font, anchor="mt")
    top = _LINE + 2 * _GAP
    for pair, lines in zip(pairs, titles, strict=True):
        for line in lines:
            colour = FAINT if line is lines[-1] else INK
            draw.text((_GAP, top), line, colour, font)
            top += _LINE
        top += _GAP // 2
        for left, image in zip(lefts, pair, strict=True):
            fitted = ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS)
            grid.paste(fitted, (left + (side - fitted.width) // 2, top))
        top += side + 2 * _GAP
    file = BytesIO()
    grid.save(file, "PNG")
    return file.getvalue()


def _wrap(text: str, font: ImageFont.FreeTypeFont, pixels: float) -> list[str]:
    # Line breaks and other unprintable characters make the text layout fail.
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    per_character = max(1.0, font.getlength(text) / max(1, len(text)))
    # Some lines have wider letters than the text's average.
    columns = int(0.95 * pixels / per_character)
    return textwrap.wrap(text, columns, max_lines=3, placeholder=" …")


def _font() -> ImageFont.FreeTypeFont:
    # Pillow's default font has Latin letters only; this one comes with matplotlib.
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", _TEXT_PIXELS)
