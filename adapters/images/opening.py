"""Read an image file's header, and estimate the memory for decoding its pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO

from PIL import Image, features
from PIL.ExifTags import Base
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from adapters.images.jpeg import read_structure
from adapters.images.kinds import Kind, kind_of, unsupported
from adapters.images.png import reduce_png
from domain.image import ImageRejected

MAX_MEGAPIXELS = 100
"""An A2 sheet scanned at 400 dpi has 62. A file of a few kilobytes may declare a hundred times
that."""
MAX_DECODING_BYTES = 1024**3
"""Memory limit for decoding one image: enough for 100 megapixels of most JPEG and PNG files."""
MAX_SCANS = 100
"""Maximum scans of a JPEG file. Progressive files have about ten; each takes an image's time."""

ON_ITS_SIDE = {5, 6, 7, 8}
"""EXIF orientations that swap width and height."""

_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2}
"""Pillow's bytes per pixel, by mode; 4 in all others."""
WORKING_BYTES = 64 * 1024**2
"""Extra bytes for the parts being converted and scaled."""


@dataclass(frozen=True)
class OpenedImage:
    """A file whose header is read and whose pixels are not decoded yet."""

    kind: Kind
    data: bytes = field(repr=False)
    image: Image.Image
    pixel_bytes: int
    """Memory of the pixels, inside and outside the decoder."""
    profile: bytes | None = None
    """ICC profile."""
    orientation: int = 1
    """EXIF orientation, 1 to 8."""
    notes: tuple[str, ...] = ()
    """Warnings for the artist; the file is used anyway."""

    @property
    def decoding_bytes(self) -> int:
        """Memory for decoding and scaling the image."""
        return self.pixel_bytes + WORKING_BYTES

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        width, height = self.image.size
        return (height, width) if self.orientation in ON_ITS_SIDE else (width, height)


def open_image(data: bytes) -> OpenedImage:
    """Read a file's header with the one decoder that fits its first bytes.

    Not with ``Image.open``, which tries unsupported formats, too.

    Raises:
        ImageRejected: the file is empty, unsupported, damaged, or needs too much memory.
    """
    kind = kind_of(data)
    with damage_rejected():
        opened = _OPENERS[kind](data)
        notes = opened.notes
        if getattr(opened.image, "n_frames", 1) > 1:
            notes = (*notes, "it is animated; its first frame is used")
        opened = replace(opened, orientation=_orientation(opened.image), notes=notes)
        _check_size(opened)
    return opened


@contextmanager
def damage_rejected() -> Iterator[None]:
    """Turn any decoder error into ``ImageRejected``.

    Pillow does not document its errors for damaged files; there are about a dozen.
    """
    try:
        yield
    except (ImageRejected, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageRejected(
            f"it has far more than the {MAX_MEGAPIXELS} million pixels that are accepted; please "
            "save it smaller"
        ) from None
    except Exception as error:
        raise ImageRejected(
            "the file is damaged or incomplete; please export or upload it again"
        ) from error


def _open_jpeg(data: bytes) -> OpenedImage:
    structure = read_structure(data)
    if structure.scans > MAX_SCANS:
        raise ImageRejected(
            f"it is a JPEG file of {structure.scans:,} scans, and at most {MAX_SCANS} are "
            "accepted; please save it again, not as progressive"
        )
    image = JpegImageFile(BytesIO(data))
    return OpenedImage(
        Kind.JPEG,
        data,
        image,
        _pixel_bytes(image) + structure.coefficient_bytes,
        image.info.get("icc_profile"),
    )


def _open_png(data: bytes) -> OpenedImage:
    reduced = reduce_png(data)
    image = PngImageFile(BytesIO(reduced.data))
    image.info.setdefault("exif", b"")  # else Pillow decodes the pixels to find later chunks
    return OpenedImage(
        Kind.PNG,
        reduced.data,
        image,
        _pixel_bytes(image),
        reduced.icc_profile,
        notes=reduced.notes,
    )


def _open_webp(data: bytes) -> OpenedImage:
    return _opened(Kind.WEBP, data, WebPImageFile)


def _open_avif(data: bytes) -> OpenedImage:
    if not features.check("avif"):
        raise unsupported(Kind.AVIF)
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded in parallel already
    return _opened(Kind.AVIF, data, AvifImagePlugin.AvifImageFile)


def _open_heic(data: bytes) -> OpenedImage:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise unsupported(Kind.HEIC) from None
    return _opened(Kind.HEIC, data, HeifImageFile)


def _opened(kind: Kind, data: bytes, decoder: Callable[[BytesIO], ImageFile]) -> OpenedImage:
    """Open with a decoder that keeps up to two canvases and gives Pillow a copy of the bytes."""
    image = decoder(BytesIO(data))
    return OpenedImage(kind, data, image, 4 * _pixel_bytes(image), image.info.get("icc_profile"))


_OPENERS = {
    Kind.JPEG: _open_jpeg,
    Kind.PNG: _open_png,
    Kind.WEBP: _open_webp,
    Kind.AVIF: _open_avif,
    Kind.HEIC: _open_heic,
}


def _pixel_bytes(image: Image.Image) -> int:
    return _BYTES_PER_PIXEL.get(image.mode, 4) * image.width * image.height


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(Base.Orientation, 1)
    except Exception:
        # The pixels may be intact. Do not reject them for unreadable EXIF data;
        # Pillow raises as many kinds of errors for it as for damaged files.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_size(opened: OpenedImage) -> None:
    width, height = opened.size
    measures = f"it is {width:,} x {height:,} pixels"
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise ImageRejected(
            f"{measures}, {width * height / 1e6:,.0f} million in all, and at most "
            f"{MAX_MEGAPIXELS} million are accepted; please save it smaller"
        )
    if opened.decoding_bytes > MAX_DECODING_BYTES:
        raise ImageRejected(
            f"{measures}, too many to decode from a {opened.kind.value} file; please save it "
            "smaller, or as PNG"
        )
