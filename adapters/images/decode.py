"""An image file to pixels: RGB, 8 bits, upright, in sRGB, transparent parts on white."""

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
from adapters.images.opening import ON_ITS_SIDE, OpenedImage, damage_refused, open_image

Size = tuple[int, int]
"""Width and height in pixels."""
Strip = tuple[int, Image.Image]
"""Some rows of an image in all their width, and the number of the first."""

_STRIP_PIXELS = 2_000_000
"""Converted at a time: a large image gets no second copy."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets an image upright, by its EXIF orientation."""


@dataclass(frozen=True)
class DecodedImage:
    """The pixels of a file, and what there is to say about them."""

    pixels: Image.Image
    transparent: bool
    """Whether parts of it may be transparent."""
    notes: tuple[str, ...]


def decode(data: bytes) -> Image.Image:
    """All pixels of an image file; of an animation, those of its first frame.

    Raises:
        ImageRefused: the file is empty, of another kind, damaged, or takes too much to decode.
    """
    return load(open_image(data)).pixels


def load(opened: OpenedImage, fit: Size | None = None) -> DecodedImage:
    """Decode the pixels.

    Args:
        fit: the size that the image is scaled to cover, and cropped to around its centre, as by
            ``ImageOps.fit`` with Lanczos' filter; without it the image keeps its own.

    Raises:
        ImageRefused: the file is damaged or incomplete.
    """
    with damage_refused():
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
        note = "its end is missing; its pixels are whole"
        image = _load_without_end(opened.data)
        return replace(opened, image=image, notes=(*opened.notes, note))
    return opened


def _load_without_end(data: bytes) -> Image.Image:
    """Decode a JPEG file that breaks off behind its last pixel.

    Where it breaks off earlier, the decoder makes up the rest from whatever follows: then
    different fillings give different pixels.

    Raises:
        OSError: it breaks off earlier.
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
    """Scale and crop an image that comes in strips, first its rows, then its columns."""
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
