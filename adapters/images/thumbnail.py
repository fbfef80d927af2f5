"""A small copy of an image for a style file's metadata."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from adapters.images.colour import to_srgb
from domain.errors import UserError

SIDE = 256
"""Pixels; the ModelSpec standard requires a small image."""


def thumbnail(file: Path) -> str:
    """The image as a JPEG in a ``data:`` URL, at most ``SIDE`` pixels per side.

    Raises:
        UserError: the file is not an image that can be read.
    """
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            convert, _ = to_srgb(upright, image.info.get("icc_profile"))
            small = convert(upright)
    except Exception as error:  # Pillow documents no types for damaged or huge files
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--thumbnail {file}: cannot be read ({reason}); give an image") from None
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    data = BytesIO()
    small.save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
