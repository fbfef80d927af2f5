"""Every format, mode and orientation comes out as RGB, upright, on white."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from adapters.images.decode import decode, load
from adapters.images.opening import open_image
from tests.adapters.images.files import SIZE, chunk, encode, furthest, png, scene


@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100, "subsampling": 0})],
)
def test_each_format_is_decoded(format: str, options: dict[str, Any]) -> None:
    decoded = decode(encode(scene(), format, **options))
    assert furthest(decoded, scene()) <= (8 if format == "JPEG" else 0)


UNDO = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}
"""For each EXIF orientation, how the camera stores an upright scene."""


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_every_exif_orientation_is_applied(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    stored: Callable[[Image.Image], Image.Image] = UNDO[orientation]
    data = encode(stored(scene()), format, exif=exif, quality=95, **options)
    decoded = decode(data)
    assert decoded.size == SIZE
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(scene())).mean() < 2
    assert open_image(data).size == SIZE


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif",
    [b"MM\x00*\x00\x00\xff\xff" + bytes(20), b"MM\x00*\x00\x00", b"MM\x0f*\x00\x00\x00"],
    ids=["leads nowhere", "cut short", "no header"],
)
def test_unreadable_exif_is_ignored(exif: bytes) -> None:
    data = encode(scene(), "PNG", exif=b"Exif\x00\x00" + exif)
    assert furthest(decode(data), scene()) == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_become_white(mode: str) -> None:
    image = scene().convert(mode)
    ramp = np.tile(np.linspace(0, 255, SIZE[0]).round().astype(np.uint8), (SIZE[1], 1))
    image.putalpha(Image.fromarray(ramp))
    share = ramp[..., None] / 255
    colours = np.asarray(image.convert("RGB")).astype(float)
    expected = colours * share + 255 * (1 - share)
    decoded = np.asarray(decode(encode(image, "PNG"))).astype(float)
    assert np.abs(decoded - expected).max() <= 1.01


def test_transparent_webp_becomes_white() -> None:
    image = Image.new("RGBA", (300, 300), (10, 20, 30, 0))
    assert decode(encode(image, "WEBP", lossless=True)).getcolors() == [(90_000, (255,) * 3)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_a_transparent_palette_entry_becomes_white(transparency: int | bytes) -> None:
    image = Image.new("P", (300, 300), 1)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(0, (0, 0, 150, 300))
    decoded = decode(encode(image, "PNG", transparency=transparency))
    assert decoded.getpixel((10, 10)) == (255, 255, 255)
    assert decoded.getpixel((290, 10)) == (0, 0, 200)


def test_a_plain_palette_keeps_its_colours() -> None:
    reduced = scene().quantize(32)
    assert furthest(decode(encode(reduced, "PNG")), reduced.convert("RGB")) == 0


def test_a_transparent_grey_level_becomes_white() -> None:
    image = Image.new("L", (300, 300), 80)
    image.paste(20, (0, 0, 150, 300))
    decoded = decode(encode(image, "PNG", transparency=20))
    assert decoded.getpixel((10, 10)) == (255, 255, 255)
    assert decoded.getpixel((290, 10)) == (80, 80, 80)


@pytest.mark.parametrize(("mode", "format"), [("L", "PNG"), ("L", "JPEG"), ("1", "PNG")])
def test_greyscale_becomes_rgb(mode: str, format: str) -> None:
    grey = scene().convert(mode)
    decoded = decode(encode(grey, format, quality=100))
    assert furthest(decoded, grey.convert("RGB")) <= 8


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 300).round().astype(np.uint16)
    image = Image.fromarray(np.tile(ramp, (256, 1)))
    assert image.mode == "I;16"
    decoded = np.asarray(decode(encode(image, "PNG")))
    assert decoded.shape == (256, 300, 3)
    assert np.abs(decoded[0, :, 0].astype(float) - ramp / 257).max() < 1
    assert (decoded == decoded[:, :, :1]).all()


def test_sixteen_bits_of_colour_are_scaled_too() -> None:
    row = b"\x00" + struct.pack(">HHH", 65535, 32768, 300) * 256
    header = struct.pack(">IIBBBBB", 256, 256, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row * 256)), chunk(b"IEND", b""))
    decoded = decode(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert decoded.getpixel((100, 100)) == (255, 128, 1)


def test_cmyk_becomes_rgb() -> None:
    decoded = decode(encode(scene().convert("CMYK"), "JPEG", quality=100, subsampling=0))
    assert furthest(decoded, scene()) <= 12


@pytest.mark.parametrize("orientation", [1, 6, 8])
@pytest.mark.parametrize("size", [(640, 320), (192, 448)])
def test_an_image_is_fitted_as_by_one_call(orientation: int, size: tuple[int, int]) -> None:
    """This holds for images that are rotated, and converted and scaled in strips."""
    wide, exif = scene(size=(2900, 1100)), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored: Callable[[Image.Image], Image.Image] = UNDO[orientation]
    opened = open_image(encode(stored(wide), "PNG", exif=exif, compress_level=1))
    fitted = load(opened, fit=size).pixels
    # Rows first or columns first: that differs by rounding.
    assert furthest(fitted, ImageOps.fit(wide, size, Image.Resampling.LANCZOS)) <= 1


def _packed(*levels: int, depth: int) -> bytes:
    """A row of levels of a PNG file."""
    bits = "".join(f"{level:0{depth}b}" for level in levels)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


@pytest.mark.parametrize(
    ("depth", "colour_type", "transparent", "other", "shown"),
    [
        (1, 0, [0], [1], 255),
        (2, 0, [1], [2], 170),
        (4, 0, [5], [1], 17),
        (8, 0, [80], [10], 10),
        (16, 0, [0x8000], [0x1000], 0x10),
        (8, 2, [80, 80, 80], [1, 1, 1], 1),
        (16, 2, [0x8000, 0x8000, 0x8000], [0, 0, 0], 0),
    ],
)
def test_the_transparent_colour_becomes_white_in_every_depth(
    depth: int, colour_type: int, transparent: list[int], other: list[int], shown: int
) -> None:
    row = b"\0" + _packed(*transparent, *other, depth=depth)
    data = png(
        (2, 1, depth, colour_type, 0, 0, 0),
        chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)),
        chunk(b"IDAT", zlib.compress(row)),
    )
    image = decode(data)
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (shown,) * 3]
