"""Decode an image file to RGB pixels: 8 bits, upright, sRGB, transparency on white."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from adapters.images.colour import to_srgb
from adapters.images.jpeg import END, read_structure
from adapters.images.kinds import Kind
from adapters.images.opening import ON_ITS_SIDE, OpenedImage, damage_rejected, open_image

Size = tuple[int, int]
"""Width and height in pixels."""
Strip = tuple[int, Image.Image]
"""Full-width rows of an image, and the index of the first."""

_STRIP_PIXELS = 2_000_000
"""Pixels converted at a time, to avoid a second copy of a large image."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that sets an image upright, by EXIF orientation."""


@dataclass(frozen=True)
class DecodedImage:
    """The pixels of a file, with warnings."""

    pixels: Image.Image
    transparent: bool
    """Whether the file may have transparent parts."""
    notes: tuple[str, ...]


def decode(data: bytes) -> Image.Image:
    """Decode an image file at full size; of an animation, the first frame.

    Raises:
        ImageRejected: the file is empty, unsupported, damaged, or needs too much memory.
    """
    return load(open_image(data)).pixels


def load(opened: OpenedImage, fit: Size | None = None) -> DecodedImage:
    """Decode the pixels.

    Args:
        fit: scale and centre-crop to this size, as ``ImageOps.fit`` with a Lanczos filter; None
            keeps the image's size.

    Raises:
        ImageRejected: the file is damaged or incomplete.
    """
    with damage_rejected():
        opened = _load(opened)
        image = opened.image
        convert, note = to_srgb(image, opened.profile)
        strips = ((top, convert(strip)) for top, strip in _strips(image))
        if fit is None:
            pixels = _stacked(strips, image.size)
        else:
            stored = fit[::-1] if opened.orientation in ON_ITS_SIDE else fit
            pixels = _fitted(strips, image.size, (stored[0], stored[1]))
        if opened.orientation in _UPRIGHT:
            pixels = pixels.transpose(_UPRIGHT[opened.orientation])
        notes = opened.notes if note is None else (*opened.notes, note)
        return DecodedImage(pixels, image.has_transparency_data, notes)


def _load(opened: OpenedImage) -> OpenedImage:
    try:
        opened.image.load()
    except OSError:
        if opened.kind is not Kind.JPEG or read_structure(opened.data).has_end:
            raise
        note = "its end is missing, but its pixels are complete"
        image = _load_without_end(opened.data)
        return replace(opened, image=image, notes=(*opened.notes, note))
    return opened


def _load_without_end(data: bytes) -> Image.Image:
    """Decode a JPEG file that is truncated after its last pixel.

    If pixels are missing, the decoder invents them from the bytes that follow: two different
    paddings then give different pixels.

    Raises:
        OSError: pixels are missing.
    """
    data = data.rstrip(b"\xff")
    digests = []
    for filling in (b"", b"\x35\xca\x6b\x94" * 32):
        image = JpegImageFile(BytesIO(data + filling + END))
        image.load()
        digests.append(_digest(image))
    if len(set(digests)) > 1:
        raise OSError("pixels are missing")
    return image


def _digest(image: Image.Image) -> bytes:
    digest = hashlib.sha256()
    for _, strip in _strips(image):
        digest.update(strip.tobytes())
    return digest.digest()


def _strips(image: Image.Image) -> Iterator[Strip]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _stacked(strips: Iterable[Strip], size: Size) -> Image.Image:
    whole = Image.new("RGB", size)
    for top, strip in strips:
        whole.paste(strip, (0, top))
    return whole


def _fitted(strips: Iterable[Strip], size: Size, target: Size) -> Image.Image:
    """Scale and crop an image given in strips, first along its rows, then its columns."""
    width, height = size
    kept_width = min(width, height * target[0] / target[1])
    kept_height = min(height, width * target[1] / target[0])
    left, above = (width - kept_width) / 2, (height - kept_height) / 2
    narrow = Image.new("RGB", (target[0], height))
    for top, strip in strips:
        box = (left, 0, left + kept_width, strip.height)
        part = strip.resize((target[0], strip.height), Image.Resampling.LANCZOS, box)
        narrow.paste(part, (0, top))
    return narrow.resize(
        target, Image.Resampling.LANCZOS, (0, above, target[0], above + kept_height)
    )
