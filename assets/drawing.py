"""Images with captions, drawn from a seed: plain scenes, and the same scenes in an artist's style.

The small base model is pretrained on plain scenes only. The demo's LoRA learns from styled scenes,
so the UNet's pretraining must not use anything of that style.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Size = int | tuple[int, int]
Points = NDArray[np.float64]
Rng = np.random.Generator

COLOURS: dict[str, Colour] = {
    "red": (220, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 45),
    "green": (40, 165, 65),
    "blue": (35, 85, 220),
    "purple": (130, 45, 175),
    "pink": (250, 150, 195),
    "brown": (125, 75, 35),
    "black": (20, 20, 24),
    "white": (246, 246, 246),
}

RADII: dict[str, tuple[float, float]] = {
    "small": (0.15, 0.19),
    "": (0.24, 0.29),
    "large": (0.35, 0.40),
}
"""A shape's half-extent as a fraction of the shorter side, by the caption's size word."""

RELATIONS = ("", "left of", "above", "inside")
"""Position of the first of two shapes relative to the second; empty if there is only one."""

BACKGROUNDS = ("plain", "fade", "ground")

_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Shape:
    """One shape of a scene; lengths are fractions of the shorter side, (0, 0) is the centre."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Background:
    """What is behind the shapes: one colour, or (`fade`, `ground`) a top and a bottom colour."""

    kind: str
    top: str
    bottom: str


@dataclass(frozen=True)
class Scene:
    """The content of an image, independent of how it is painted."""

    shapes: tuple[Shape, ...]
    relation: str
    background: Background


def draw_scene(rng: Rng, size: Size) -> tuple[Image.Image, str]:
    """Draw a plain scene of `size` pixels (a side, or width and height), with a caption."""
    scene = compose_scene(rng)
    return paint_plain(scene, rng, size), describe(scene)


def draw_styled_scene(rng: Rng, size: Size) -> tuple[Image.Image, str]:
    """Draw a scene as ink and wash on cream paper; the caption does not mention the style."""
    scene = compose_scene(rng)
    return paint_ink_and_wash(scene, rng, size), describe(scene)


def draw_texture(rng: Rng, size: Size) -> Image.Image:
    """Draw strokes, patches and hatching in random colours, to train an autoencoder."""
    width, height = _width_height(size)
    big = (width * 2, height * 2)
    image = _blend_down(_random_colour(rng), _random_colour(rng), big)
    for _ in range(int(rng.integers(2, 6))):
        paint_over = _TEXTURES[int(rng.integers(len(_TEXTURES)))]
        paint_over(image, rng)
    if rng.random() < 0.4:
        image = _add_grain(image, rng, strength=float(rng.uniform(2, 9)))
    return image.resize((width, height), Image.Resampling.BOX)


def draw_style_set(folder: Path, count: int, seed: int, size: int = 320) -> list[Path]:
    """Write `count` styled images, each with a `.txt` caption; return the images' paths.

    Every fifth image is not square, and file types alternate, as in a typical user's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        image, caption = draw_styled_scene(rng, _set_size(index, size))
        path = folder / f"image_{index + 1:02d}{'.png' if index % 3 == 2 else '.jpg'}"
        options = {} if path.suffix == ".png" else {"quality": 95}
        image.save(path, **options)
        path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def compose_scene(rng: Rng) -> Scene:
    """Choose the content of an image: mostly one shape, sometimes two in a relation."""
    background = _choose_background(rng)
    taken = [background.top, background.bottom]
    if rng.random() < 0.75:
        return Scene((_choose_shape(rng, taken),), "", background)
    relation = str(rng.choice(RELATIONS[1:]))
    if relation == "inside":
        outer = _choose_shape(rng, taken, kinds=("circle", "square", "diamond"), size="large")
        inner = _choose_shape(rng, [outer.colour], size="small", at=(outer.x, outer.y))
        return Scene((inner, outer), relation, background)
    offset = (-0.24, 0.0) if relation == "left of" else (0.0, -0.24)
    first = _choose_shape(rng, taken, size="small", at=offset)
    second = _choose_shape(rng, [*taken, first.colour], size="small", at=(-offset[0], -offset[1]))
    return Scene((first, second), relation, background)


def describe(scene: Scene) -> str:
    """Describe a scene in words: shapes, relation, background."""
    subject = f" {scene.relation} ".join(_name(shape) for shape in scene.shapes)
    ground = scene.background
    if ground.kind == "plain":
        return f"{subject} on {_article(ground.top)} background"
    if ground.kind == "fade":
        return f"{subject} on a background fading from {ground.top} to {ground.bottom}"
    return f"{subject} under {_article(ground.top)} sky on {ground.bottom} ground"


def paint_plain(scene: Scene, rng: Rng, size: Size) -> Image.Image:
    """Paint flat, pure colours with clean edges: the only style that the base model knows."""
    width, height = _width_height(size)
    big = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    top, bottom = (
        _vary(COLOURS[name], rng, 6) for name in (scene.background.top, scene.background.bottom)
    )
    image = _paint_background(scene.background.kind, top, bottom, big)
    for shape in reversed(scene.shapes):
        colour = _vary(COLOURS[shape.colour], rng, 6)
        image.paste(colour, (0, 0), _mask(_outlines(shape, big), big))
    return image.resize((width, height), Image.Resampling.BOX)


# --- the plain painter's parts ---------------------------------------------------------------


def _name(shape: Shape) -> str:
    return _article(" ".join(word for word in (shape.size, shape.colour, shape.kind) if word))


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _choose_background(rng: Rng) -> Background:
    names = list(COLOURS)
    kind = str(rng.choice(BACKGROUNDS, p=[0.64, 0.16, 0.20]))
    top, bottom = (names[i] for i in rng.choice(len(names), size=2, replace=False))
    return Background(kind, top, top if kind == "plain" else bottom)


def _choose_shape(
    rng: Rng,
    taken: list[str],
    kinds: tuple[str, ...] = (),
    size: str | None = None,
    at: tuple[float, float] | None = None,
) -> Shape:
    kind = str(rng.choice(list(kinds or SHAPES)))
    colour = str(rng.choice([name for name in COLOURS if name not in taken]))
    size = str(rng.choice(["small", "", "", "large"])) if size is None else size
    low, high = RADII[size]
    radius = float(rng.uniform(low, high))
    reach = 0.03 if at is not None else max(0.0, 0.42 - radius) * 0.5
    x, y = at or (0.0, 0.0)
    dx, dy = rng.uniform(-reach, reach, size=2)
    return Shape(
        kind, colour, size, x + float(dx), y + float(dy), radius, float(rng.uniform(-0.12, 0.12))
    )


def _width_height(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _vary(colour: Colour, rng: Rng, spread: float) -> Colour:
    red, green, blue = (
        np.clip(np.array(colour) + rng.normal(0, spread, 3), 0, 255).astype(int).tolist()
    )
    return red, green, blue


def _paint_background(
    kind: str, top: Colour, bottom: Colour, size: tuple[int, int]
) -> Image.Image:
    if kind == "fade":
        return _blend_down(top, bottom, size)
    image = Image.new("RGB", size, top)
    if kind == "ground":
        ImageDraw.Draw(image).rectangle((0, round(size[1] * 0.62), size[0], size[1]), fill=bottom)
    return image


def _blend_down(top: Colour, bottom: Colour, size: tuple[int, int]) -> Image.Image:
    share = np.linspace(0, 1, size[1])[:, None]
    column = np.array(top) * (1 - share) + np.array(bottom) * share
    return Image.fromarray(column.round().astype(np.uint8)[:, None, :]).resize(size)


def _mask(outlines: list[Points], size: tuple[int, int]) -> Image.Image:
    """Fill the first outline and cut out the others: white inside the shape."""
    mask = Image.new("L", size, 0)
    draw = ImageDraw.Draw(mask)
    for index, outline in enumerate(outlines):
        draw.polygon([(float(x), float(y)) for x, y in outline], fill=0 if index else 255)
    return mask


def _outlines(shape: Shape, size: tuple[int, int]) -> list[Points]:
    """A shape's closed outlines in pixels of an image of `size`; holes come last."""
    short = min(size)
    turn = np.array(
        [
            [math.cos(shape.angle), math.sin(shape.angle)],
            [-math.sin(shape.angle), math.cos(shape.angle)],
        ]
    )
    centre = np.array(size) / 2 + np.array([shape.x, shape.y]) * short
    return [outline @ turn * shape.radius * short + centre for outline in SHAPES[shape.kind]]


def _polar(radii: list[float], start: float = -math.pi / 2) -> Points:
    """A closed polygon around (0, 0) with corners at equal angles and the given radii."""
    angles = start + np.arange(len(radii)) * 2 * math.pi / len(radii)
    return np.array(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _heart() -> Points:
    t = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 2
    points: Points = np.stack([x, y], axis=1) / 16
    return points


def _cross() -> Points:
    a, b = 0.36, 1.0
    corners = [
        (-a, -b),
        (a, -b),
        (a, -a),
        (b, -a),
        (b, a),
        (a, a),
        (a, b),
        (-a, b),
        (-a, a),
        (-b, a),
        (-b, -a),
        (-a, -a),
    ]
    return np.array(corners)


SHAPES: dict[str, list[Points]] = {
    "circle": [_polar([1.0] * 72)],
    "square": [np.array([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)])],
    "triangle": [_polar([1.12] * 3) + np.array([0.0, 0.2])],
    "star": [_polar([1.12, 0.48] * 5)],
    "heart": [_heart()],
    "ring": [_polar([1.0] * 72), _polar([0.52] * 72)],
    "cross": [_cross()],
    "diamond": [np.array([(0.0, -1.1), (0.78, 0.0), (0.0, 1.1), (-0.78, 0.0)])],
}
"""Each shape's outlines around (0, 0), reaching about one unit, y down; the second is a hole."""


# --- the artist ------------------------------------------------------------------------------

PAPER: Colour = (243, 228, 196)
INK: Colour = (44, 30, 30)
WASHES: dict[str, Colour] = {
    "red": (178, 74, 52),
    "orange": (205, 128, 62),
    "yellow": (216, 178, 84),
    "green": (116, 132, 82),
    "blue": (84, 118, 136),
    "purple": (124, 90, 116),
    "pink": (212, 150, 134),
    "brown": (132, 94, 62),
    "black": (74, 66, 66),
    "white": (236, 222, 194),
}
"""The artist's earth colour for each colour word."""


def paint_ink_and_wash(scene: Scene, rng: Rng, size: Size) -> Image.Image:
    """Paint muted washes on cream paper inside a ragged margin, then hatch and outline in ink."""
    width, height = _width_height(size)
    big = (width * 2, height * 2)
    short = min(big)
    paper = Image.new("RGB", big, PAPER)
    image = paper.copy()
    wash = _paint_background(
        scene.background.kind, _thin(scene.background.top), _thin(scene.background.bottom), big
    )
    image.paste(wash, (0, 0), _mask([_wobble(_panel(big), rng, short * 0.014)], big))
    for shape in reversed(scene.shapes):
        outlines = [_wobble(line, rng, short * 0.011) for line in _outlines(shape, big)]
        mask = _mask(outlines, big)
        _wash(image, mask, WASHES[shape.colour], rng)
        _hatch(image, mask, rng, spacing=short * 0.072, thickness=short * 0.017, colour=INK)
        for line in outlines:
            _ink(image, line, rng, thickness=short * 0.036)
    textured = _add_grain(image, rng, strength=4.0)
    return textured.resize((width, height), Image.Resampling.BOX)


def _thin(name: str) -> Colour:
    """Dilute a wash with paper colour, so that backgrounds stay behind the shapes."""
    red, green, blue = (
        round(0.62 * w + 0.38 * p) for w, p in zip(WASHES[name], PAPER, strict=True)
    )
    return red, green, blue


def _panel(size: tuple[int, int]) -> Points:
    margin = 0.085 * min(size)
    right, bottom = size[0] - margin, size[1] - margin
    return np.array([(margin, margin), (right, margin), (right, bottom), (margin, bottom)])


def _wobble(outline: Points, rng: Rng, reach: float) -> Points:
    """Follow a closed outline with an unsteady hand that deviates by about `reach` pixels."""
    closed = np.vstack([outline, outline[:1]])
    lengths = np.hypot(*np.diff(closed, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    steps = np.linspace(0, along[-1], 240, endpoint=False)
    walked = np.stack([np.interp(steps, along, closed[:, axis]) for axis in (0, 1)], axis=1)
    turns = steps / along[-1] * 2 * math.pi
    for frequency in (2, 3, 5, 8):
        phases = rng.uniform(0, 2 * math.pi, 2)
        walked += (
            reach
            * rng.normal(0, 1, 2)
            / math.sqrt(frequency)
            * np.sin(frequency * turns[:, None] + phases)
        )
    return walked


def _wash(image: Image.Image, mask: Image.Image, colour: Colour, rng: Rng) -> None:
    """Paint a wash of uneven strength, through which the paper shows in places."""
    cloud = _cloud(image.size, rng, cells=5)
    strength = np.asarray(mask, dtype=np.float64) * (0.80 + 0.20 * cloud)
    image.paste(colour, (0, 0), Image.fromarray(strength.astype(np.uint8)))


def _hatch(
    image: Image.Image,
    mask: Image.Image,
    rng: Rng,
    spacing: float,
    thickness: float,
    colour: Colour,
    slope: float = 1.0,
) -> None:
    """Draw parallel diagonal strokes, `spacing` pixels apart, wherever the mask is white."""
    width, height = image.size
    strokes = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(strokes)
    reach = height * abs(slope)
    start = -reach + float(rng.uniform(0, spacing))
    step = spacing * math.hypot(1.0, slope)
    while start < width + reach:
        lean = start + slope * height + float(rng.normal(0, spacing * 0.12))
        draw.line((lean, 0, start, height), fill=255, width=max(1, round(thickness)))
        start += step
    both = Image.fromarray(np.minimum(np.asarray(strokes), np.asarray(mask)))
    image.paste(colour, (0, 0), both)


def _ink(
    image: Image.Image, line: Points, rng: Rng, thickness: float, colour: Colour = INK
) -> None:
    """Draw a closed line with a brush of varying pressure."""
    draw = ImageDraw.Draw(image)
    turns = np.linspace(0, 2 * math.pi, len(line), endpoint=False)
    pressure = (
        1
        + 0.28 * np.sin(2 * turns + rng.uniform(0, 6))
        + 0.12 * np.sin(5 * turns + rng.uniform(0, 6))
    )
    dense = np.linspace(0, len(line), len(line) * 4, endpoint=False)
    index = np.arange(len(line) + 1)
    xs = np.interp(dense, index, np.append(line[:, 0], line[0, 0]))
    ys = np.interp(dense, index, np.append(line[:, 1], line[0, 1]))
    radii = np.interp(dense, index, np.append(pressure, pressure[0])) * thickness / 2
    for x, y, radius in zip(xs, ys, radii, strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _cloud(size: tuple[int, int], rng: Rng, cells: int) -> NDArray[np.float64]:
    """Smooth noise in [0, 1], height x width, with about `cells` lumps a side."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float64) / 255


def _add_grain(image: Image.Image, rng: Rng, strength: float) -> Image.Image:
    """Add paper grain of about `strength` grey levels, coarse enough to survive scaling down."""
    width, height = image.size
    fine = rng.normal(0, 1, (height // 4 + 1, width // 4 + 1))
    grain = np.kron(fine, np.ones((4, 4)))[:height, :width, None] + 2 * (
        _cloud(image.size, rng, 7)[..., None] - 0.5
    )
    pixels = np.asarray(image, dtype=np.float64) + strength * grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(0.8)
    )


def _set_size(index: int, size: int) -> Size:
    if index % 10 == 4:
        return size * 6 // 5, size * 9 // 10
    if index % 10 == 9:
        return size * 9 // 10, size * 6 // 5
    return size


# --- textures --------------------------------------------------------------------------------


def _random_colour(rng: Rng) -> Colour:
    """A random colour; a third are greyish, because uniform channels are rarely muted."""
    colour = rng.uniform(0, 255, 3)
    if rng.random() < 0.35:
        colour = colour.mean() + (colour - colour.mean()) * 0.3
    red, green, blue = colour.astype(int).tolist()
    return red, green, blue


def _random_blob(image: Image.Image, rng: Rng) -> list[Points]:
    short = min(image.size)
    shape = Shape(
        str(rng.choice(list(SHAPES))),
        "",
        "",
        *rng.uniform(-0.45, 0.45, 2),
        float(rng.uniform(0.08, 0.45)),
        float(rng.uniform(0, 6)),
    )
    reach = short * float(rng.uniform(0, 0.03))
    return [_wobble(line, rng, reach) for line in _outlines(shape, image.size)]


def _texture_patch(image: Image.Image, rng: Rng) -> None:
    _wash(image, _mask(_random_blob(image, rng), image.size), _random_colour(rng), rng)


def _texture_stroke(image: Image.Image, rng: Rng) -> None:
    _ink(
        image,
        _random_blob(image, rng)[0],
        rng,
        min(image.size) * float(rng.uniform(0.01, 0.05)),
        _random_colour(rng),
    )


def _texture_hatching(image: Image.Image, rng: Rng) -> None:
    short = min(image.size)
    spacing = short * float(rng.uniform(0.04, 0.14))
    slope = float(rng.uniform(-2, 2))
    mask = _mask(_random_blob(image, rng), image.size)
    _hatch(
        image,
        mask,
        rng,
        spacing,
        spacing * float(rng.uniform(0.15, 0.5)),
        _random_colour(rng),
        slope,
    )


def _texture_drawing(image: Image.Image, rng: Rng) -> None:
    """Wash, hatch and draw one outline in its own colours."""
    short = min(image.size)
    outlines = _random_blob(image, rng)
    mask = _mask(outlines, image.size)
    line = _random_colour(rng)
    _wash(image, mask, _random_colour(rng), rng)
    spacing = short * float(rng.uniform(0.05, 0.12))
    thickness = spacing * float(rng.uniform(0.15, 0.4))
    _hatch(image, mask, rng, spacing, thickness, line, float(rng.choice([-1.5, -0.7, 0.8, 1.2])))
    for outline in outlines:
        _ink(image, outline, rng, short * float(rng.uniform(0.015, 0.045)), line)


def _texture_band(image: Image.Image, rng: Rng) -> None:
    width, height = image.size
    edges = sorted(rng.integers(0, height, 2).tolist())
    ImageDraw.Draw(image).rectangle((0, edges[0], width, edges[1]), fill=_random_colour(rng))


_TEXTURES: tuple[Callable[[Image.Image, Rng], None], ...] = (
    _texture_patch,
    _texture_stroke,
    _texture_hatching,
    _texture_drawing,
    _texture_drawing,
    _texture_band,
)
