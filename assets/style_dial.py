"""Draw scenes whose style strength and content are set by a dial, to test measures of style."""

from __future__ import annotations

from PIL import Image

from assets.drawing import (
    Rng,
    Scene,
    Size,
    compose_scene,
    describe,
    paint_ink_and_wash,
    paint_plain,
)

CONTENTS: dict[str, frozenset[str]] = {
    "": frozenset(),
    "warm": frozenset({"red", "orange"}),
    "dark": frozenset({"blue", "black"}),
    "round": frozenset({"circle", "ring"}),
    "pointed": frozenset({"star", "cross"}),
}
"""Colours or kinds of shapes to which a content is limited; empty for any."""


def draw_dialled(
    rng: Rng, size: Size, strength: float, content: str = ""
) -> tuple[Image.Image, str]:
    """Draw a scene, with a caption, between the plain style (0) and ink and wash (1).

    Args:
        content: a key of ``CONTENTS``.
    """
    scene = compose_scene(rng)
    while not _shows(scene, CONTENTS[content]):
        scene = compose_scene(rng)
    plain = paint_plain(scene, rng, size)
    return Image.blend(plain, paint_ink_and_wash(scene, rng, size), strength), describe(scene)


def _shows(scene: Scene, wanted: frozenset[str]) -> bool:
    return not wanted or all(wanted & {shape.colour, shape.kind} for shape in scene.shapes)
