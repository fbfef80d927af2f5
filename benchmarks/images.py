"""Images for the benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adapters.images.opening import open_image
from adapters.images.prepare import prepare
from assets.drawing import draw_style_set
from domain.image import TrainingImage


def drawn_images(folder: Path, count: int, size: int = 512) -> tuple[TrainingImage, ...]:
    """Images drawn by the project, with their captions; most are square."""
    return read_images(draw_style_set(folder, count=count, seed=1, size=size))


def read_images(paths: Iterable[Path]) -> tuple[TrainingImage, ...]:
    """Read image files and the captions beside them."""
    return tuple(
        TrainingImage(
            path.name,
            path.read_bytes(),
            prepare(open_image(path.read_bytes()), 512).facts,
            path.with_suffix(".txt").read_text(encoding="utf-8").strip(),
        )
        for path in paths
    )
