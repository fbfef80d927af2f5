"""Plot the scores of the previews over the epochs of a run."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

from adapters.report.colours import ACCENT, FAINT, INK, PAPER
from adapters.report.curves import legend_above
from domain.results import PreviewScores

WIDTH, HEIGHT = 1600, 560
"""Size of the drawing in pixels."""
_DPI = 250


def plot_scores(scores: Mapping[int, PreviewScores]) -> bytes:
    """A PNG of closeness and faithfulness by epoch."""
    # Not pyplot, which keeps figures in global state and looks for a display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    size = (WIDTH / _DPI, HEIGHT / _DPI)
    figure = Figure(figsize=size, dpi=_DPI, facecolor=PAPER, layout="constrained")
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
    axes.set_xlabel("epoch", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=FAINT, alpha=0.18)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=FAINT)
    legend_above(axes)
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def scores_in_words(scores: Mapping[int, PreviewScores]) -> str:
    """Text alternative for the image of ``plot_scores``."""
    return "Scores of the previews: " + "; ".join(
        f"epoch {epoch}: closeness {one.closeness:.2f}, faithfulness {one.faithfulness:.2f}"
        for epoch, one in scores.items()
    )
