"""Draw previews before and after the training side by side in one image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont, ImageOps

from adapters.report.colours import ACCENT, FAINT, INK, PAPER
from domain.results import Preview

_GAP = 24
_LINE = 26
_TEXT_PIXELS = 18


def draw_previews(before: Sequence[Preview], after: Sequence[Preview]) -> bytes:
    """A PNG with a row for each prompt: the images before and after the training."""
    pairs = [
        (_opened(first), _opened(second)) for first, second in zip(before, after, strict=True)
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


def _opened(preview: Preview) -> Image.Image:
    return Image.open(BytesIO(preview.png)).convert("RGB")


def _font() -> ImageFont.FreeTypeFont:
    # Pillow's default font has Latin letters only; this one comes with matplotlib.
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", _TEXT_PIXELS)
