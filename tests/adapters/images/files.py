"""Image files for the tests: drawn, encoded, and put together byte by byte."""

from __future__ import annotations

import struct
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from adapters.images.opening import open_image
from adapters.images.prepare import prepare
from assets.drawing import draw_scene
from domain.image import ImageFacts

SIZE = (320, 288)
CASES = Path(__file__).parent / "cases"
"""Files of other programs that earlier versions decoded wrongly."""


def scene(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    """A drawing with many colours."""
    return draw_scene(np.random.default_rng(seed), size)[0]


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    """The image encoded by Pillow."""
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def srgb_profile() -> bytes:
    """The ICC profile of sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def facts_of(data: bytes) -> ImageFacts:
    """The facts of an image for a training at 512 pixels."""
    return prepare(open_image(data), 512).facts


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(header: tuple[int, ...], *chunks: bytes) -> bytes:
    """A PNG file of a header (width, height, depth, colour type, 0, 0, interlacing) and chunks."""
    first = chunk(b"IHDR", struct.pack(">IIBBBBB", *header))
    return b"\x89PNG\r\n\x1a\n" + first + b"".join(chunks) + chunk(b"IEND", b"")


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    """A PNG file with more chunks behind its header."""
    behind_header = 8 + 25
    return data[:behind_header] + b"".join(chunks) + data[behind_header:]


def furthest(a: Image.Image, b: Image.Image) -> int:
    """The largest difference between two RGB images, in grey levels."""
    assert a.size == b.size
    assert a.mode == b.mode == "RGB"
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


@cache
def rgba_bomb(side: int) -> bytes:
    """A small PNG file of a square of transparent pixels, four bytes each."""
    rows = zlib.compressobj(1)
    row = bytes(1 + 4 * side)
    body = b"".join(rows.compress(row) for _ in range(side)) + rows.flush()
    return png((side, side, 8, 6, 0, 0, 0), chunk(b"IDAT", body))


def jpeg_of_scans(scans: int, size: tuple[int, int] = SIZE) -> bytes:
    """A progressive JPEG file that repeats its last scan."""
    data = encode(scene(size=size).convert("L"), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * (scans - data[:start].count(b"\xff\xda")) + data[-2:]


def animated_webp(frames: int, size: tuple[int, int] = SIZE) -> bytes:
    """A WebP file that repeats its first frame."""
    pair = encode(
        scene(size=size), "WEBP", save_all=True, append_images=[scene(1, size)], lossless=True
    )
    start = pair.index(b"ANMF")
    length = 8 + struct.unpack_from("<I", pair, start + 4)[0]
    body = pair[12:start] + pair[start : start + length + length % 2] * frames
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
