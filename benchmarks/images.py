"""Images to measure with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adapters.pillow import PillowInspector
from assets.drawing import draw_style_set
from domain.image import TrainingImage


def drawn_images(folder: Path, count: int, size: int = 512) -> tuple[TrainingImage, ...]:
    """Images that the project draws, with their captions; squares but for a few."""
    return read_images(draw_style_set(folder, count=count, seed=1, size=size))


def read_images(paths: Iterable[Path]) -> tuple[TrainingImage, ...]:
    """Image files, each with its caption beside it."""
    inspect = PillowInspector().inspect
    return tuple(
        TrainingImage(
            path.name,
            path.read_bytes(),
            inspect(path.read_bytes()),
            path.with_suffix(".txt").read_text().strip(),
        )
        for path in paths
    )
