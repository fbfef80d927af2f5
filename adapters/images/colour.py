"""Pixels of any mode and colour profile to sRGB."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from itertools import product

from PIL import Image, ImageChops, ImageCms

Converter = Callable[[Image.Image], Image.Image]
"""From a part of an image to the same part in RGB, 8 bits, sRGB."""

TOLERANCE = 2
"""Levels of 255 by which a profile may move a colour and still pass for sRGB: as many as two
programs differ over the same profile."""

_LATTICE = (0, 16, 32, 64, 96, 128, 160, 192, 224, 255)


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Converter, str | None]:
    """How the parts of an image become sRGB, and what there is to say about its profile.

    Whether a profile is that of sRGB is decided by what it does to a lattice of colours: its
    name proves nothing. Pixels of sRGB stay as they are. A profile that cannot be used is ignored.
    """
    mode = _colour_mode(image)
    if profile is not None:
        try:
            return _to_white(*_apply(profile, mode)), None
        except (ImageCms.PyCMSError, OSError, ValueError):
            note = "its colour profile cannot be used and is ignored"
            return _to_white(mode, _as_it_is), note
    return _to_white(mode, _as_it_is), None


def _colour_mode(image: Image.Image) -> str:
    """The mode in which an image's colours meet its profile: of grey, of RGB or of CMYK."""
    if image.mode in {"1", "L", "LA", "I;16"}:
        return "L"
    return "CMYK" if image.mode == "CMYK" else "RGB"


def _as_it_is(part: Image.Image) -> Image.Image:
    return part.convert("RGB")


def _apply(data: bytes, mode: str) -> tuple[str, Converter]:
    """The mode that a profile is for, and the conversion from there."""
    profile = ImageCms.ImageCmsProfile(BytesIO(data))
    if mode == "L" and profile.profile.xcolor_space.strip() == "RGB":
        mode = "RGB"
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")

    def convert(part: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(part, transform)
        assert converted is not None  # it is None only for a conversion in place
        return converted

    if mode == "CMYK":
        return mode, convert
    lattice = _lattice(mode)
    moved = ImageChops.difference(convert(lattice), lattice.convert("RGB"))
    furthest = max(high for _, high in extrema(moved))
    return mode, convert if furthest > TOLERANCE else _as_it_is


def extrema(image: Image.Image) -> list[tuple[int, int]]:
    """The lowest and the highest level of each colour of an RGB image."""
    return [pair for pair in image.getextrema() if isinstance(pair, tuple)]


def _lattice(mode: str) -> Image.Image:
    """Colours from all over the space, one a pixel."""
    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    colours = bytes(level for colour in product(_LATTICE, repeat=3) for level in colour)
    return Image.frombytes("RGB", (len(_LATTICE) ** 3, 1), colours)


def _to_white(mode: str, convert: Converter) -> Converter:
    """The conversion of a part's colours in ``mode``, with what is transparent on white."""

    def on_white(part: Image.Image) -> Image.Image:
        if part.mode == "I;16":
            # The high byte, as Pillow itself reads colours of 16 bits; its conversion would clip.
            return convert(part.point(lambda value: value / 256).convert("L").convert(mode))
        if not part.has_transparency_data:
            return convert(part.convert(mode))
        layered = part.convert("RGBA")
        opaque = part.convert("L") if mode == "L" else layered.convert("RGB")
        white = Image.new("RGB", part.size, "white")
        white.paste(convert(opaque), mask=layered.getchannel("A"))
        return white

    return on_white
