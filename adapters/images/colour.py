"""Convert pixels of any mode and colour profile to sRGB."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from itertools import product

from PIL import Image, ImageChops, ImageCms

Converter = Callable[[Image.Image], Image.Image]
"""Converts a part of an image to RGB, 8 bits, sRGB."""

TOLERANCE = 2
"""Largest colour shift, in levels of 255, of a profile that counts as sRGB. Two programs differ by
as much on the same profile."""

_LATTICE = (0, 16, 32, 64, 96, 128, 160, 192, 224, 255)


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Converter, str | None]:
    """The conversion of an image's parts to sRGB, and warnings about its profile.

    A profile counts as sRGB by its effect on a lattice of colours; its name proves nothing. sRGB
    pixels stay unchanged. An unusable profile is ignored.
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
    """The mode in which a profile applies to an image's colours: grey, RGB or CMYK."""
    if image.mode in {"1", "L", "LA", "I;16"}:
        return "L"
    return "CMYK" if image.mode == "CMYK" else "RGB"


def _as_it_is(part: Image.Image) -> Image.Image:
    return part.convert("RGB")


def _apply(data: bytes, mode: str) -> tuple[str, Converter]:
    """The mode that a profile applies to, and the conversion from it."""
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
    """Lowest and highest level of each channel of an RGB image."""
    return [pair for pair in image.getextrema() if isinstance(pair, tuple)]


def _lattice(mode: str) -> Image.Image:
    """A lattice of colours over the whole space, one per pixel."""
    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    colours = bytes(level for colour in product(_LATTICE, repeat=3) for level in colour)
    return Image.frombytes("RGB", (len(_LATTICE) ** 3, 1), colours)


def _to_white(mode: str, convert: Converter) -> Converter:
    """The conversion of a part in ``mode``, with transparency composited on white."""

    def on_white(part: Image.Image) -> Image.Image:
        if part.mode == "I;16":
            # Keep the high byte, as Pillow does for 16-bit colours; its conversion would clip.
            part = part.point(lambda value: value / 256).convert("L")
        if not part.has_transparency_data:
            return convert(part.convert(mode))
        layered = part.convert("RGBA")
        opaque = part.convert("L") if mode == "L" else layered.convert("RGB")
        white = Image.new("RGB", part.size, "white")
        white.paste(convert(opaque), mask=layered.getchannel("A"))
        return white

    return on_white
