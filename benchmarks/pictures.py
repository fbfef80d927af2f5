"""Pictures to measure with."""

from __future__ import annotations

from pathlib import Path

from adapters.pillow import PillowInspector
from assets.drawing import draw_style_set
from domain.picture import Picture


def drawn_pictures(folder: Path, count: int, size: int = 512) -> tuple[Picture, ...]:
    """Pictures that the project draws, with their captions; squares but for a few."""
    inspect = PillowInspector().inspect
    return tuple(
        Picture(
            path.name,
            path.read_bytes(),
            inspect(path.read_bytes()),
            path.with_suffix(".txt").read_text().strip(),
        )
        for path in draw_style_set(folder, count=count, seed=1, size=size)
    )
