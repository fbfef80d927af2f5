from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assets.drawing import (
    COLOURS,
    SHAPES,
    Background,
    Scene,
    Shape,
    compose_scene,
    describe,
    draw_scene,
    draw_style_set,
    draw_styled_scene,
    draw_texture,
    paint_ink_and_wash,
    paint_plain,
)

Draw = Callable[[np.random.Generator, int], tuple[Image.Image, str]]


def _circle(colour: str, background: str) -> Scene:
    shape = Shape("circle", colour, "large", x=0.0, y=0.0, radius=0.37, angle=0.0)
    return Scene((shape,), "", Background("plain", background, background))


def _pixels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(image, dtype=np.float64)


@pytest.mark.parametrize("draw", [draw_scene, draw_styled_scene])
def test_the_same_seed_draws_the_same_image_and_caption(draw: Draw) -> None:
    first, first_caption = draw(np.random.default_rng(7), 64)
    again, again_caption = draw(np.random.default_rng(7), 64)
    assert first.tobytes() == again.tobytes()
    assert first_caption == again_caption


@pytest.mark.parametrize("draw", [draw_scene, draw_styled_scene])
def test_another_seed_draws_another_image(draw: Draw) -> None:
    first, _ = draw(np.random.default_rng(7), 64)
    other, _ = draw(np.random.default_rng(8), 64)
    assert first.tobytes() != other.tobytes()


def test_textures_are_determined_by_the_seed() -> None:
    first, again, other = (draw_texture(np.random.default_rng(seed), 64) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_images_have_the_width_and_height_asked_for() -> None:
    rng = np.random.default_rng(0)
    assert draw_scene(rng, (72, 56))[0].size == (72, 56)
    assert draw_styled_scene(rng, (56, 72))[0].size == (56, 72)
    assert draw_texture(rng, (72, 56)).size == (72, 56)


def test_a_caption_names_size_colour_shape_and_background() -> None:
    assert describe(_circle("red", "blue")) == "a large red circle on a blue background"
    assert describe(_circle("red", "orange")) == "a large red circle on an orange background"


def test_every_caption_names_only_colours_and_shapes_that_are_painted() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = compose_scene(rng)
        words = set(describe(scene).split())
        assert words & set(SHAPES) == {shape.kind for shape in scene.shapes}
        painted = {shape.colour for shape in scene.shapes}
        assert words & set(COLOURS) == painted | {scene.background.top, scene.background.bottom}


def test_a_plain_scene_shows_the_colours_of_its_caption() -> None:
    image = _pixels(paint_plain(_circle("red", "blue"), np.random.default_rng(0), 64))
    assert np.abs(image[32, 32] - COLOURS["red"]).max() < 30
    assert np.abs(image[2, 2] - COLOURS["blue"]).max() < 30


def test_the_style_changes_the_same_scene_throughout() -> None:
    scene = _circle("red", "blue")
    plain = _pixels(paint_plain(scene, np.random.default_rng(0), 64))
    styled = _pixels(paint_ink_and_wash(scene, np.random.default_rng(0), 64))
    assert (np.abs(plain - styled).max(axis=2) > 20).mean() > 0.8


def test_the_style_has_paper_at_the_margin_and_ink_in_the_shape() -> None:
    styled = _pixels(paint_ink_and_wash(_circle("red", "blue"), np.random.default_rng(0), 128))
    assert styled[:4].mean() > 200
    assert (styled[32:96, 32:96].max(axis=2) < 80).any()


def test_a_style_set_has_a_caption_beside_every_image(tmp_path: Path) -> None:
    paths = draw_style_set(tmp_path / "style", count=10, seed=3, size=64)
    assert len(paths) == 10
    assert {path.suffix for path in paths} == {".jpg", ".png"}
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) >= 57
        assert path.with_suffix(".txt").read_text("utf-8").startswith(("a ", "an "))


def test_a_style_set_is_determined_by_its_seed(tmp_path: Path) -> None:
    contents = [
        [path.read_bytes() for path in draw_style_set(tmp_path / name, 4, seed, size=64)]
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    ]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]
