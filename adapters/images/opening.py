"""An image file's header: what the file holds, and what its pixels will take to decode."""

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
from domain.image import ImageRefused

MAX_MEGAPIXELS = 100
"""A scan of an A2 sheet at 400 dpi has 62. A file of a few kilobytes may claim a hundred times
that."""
MAX_DECODING_BYTES = 1024**3
"""Memory that decoding one image may take: 100 megapixels of most JPEG and PNG files."""
MAX_SCANS = 100
"""Of a JPEG file. Progressive ones have about ten; each costs as much time as a whole image."""

ON_ITS_SIDE = {5, 6, 7, 8}
"""EXIF orientations in which width and height are exchanged."""

_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2}
"""What Pillow keeps of a pixel, by mode; 4 in all others."""
_WORKING_BYTES = 64 * 1024**2
"""Beside the pixels, for the parts that are being converted and scaled."""


@dataclass(frozen=True)
class OpenedImage:
    """A file whose header is read, and whose pixels are not."""

    kind: Kind
    data: bytes = field(repr=False)
    image: Image.Image
    pixel_bytes: int
    """Memory that the pixels take, in the decoder and outside."""
    profile: bytes | None = None
    """ICC profile."""
    orientation: int = 1
    """EXIF's, 1 to 8."""
    notes: tuple[str, ...] = ()
    """What the artist should know of a file that is used all the same."""

    @property
    def decoding_bytes(self) -> int:
        """Memory that it takes to decode and scale the image."""
        return self.pixel_bytes + _WORKING_BYTES

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright."""
        width, height = self.image.size
        return (height, width) if self.orientation in ON_ITS_SIDE else (width, height)


def open_image(data: bytes) -> OpenedImage:
    """Read a file's header with the one decoder that fits its first bytes.

    Not by ``Image.open``: it tries formats that nobody needs.

    Raises:
        ImageRefused: the file is empty, of another kind, damaged, or takes too much to decode.
    """
    kind = kind_of(data)
    with damage_refused():
        opened = _OPENERS[kind](data)
        notes = opened.notes
        if getattr(opened.image, "n_frames", 1) > 1:
            notes = (*notes, "it is animated; its first frame is used")
        opened = replace(opened, orientation=_orientation(opened.image), notes=notes)
        _check_size(opened)
    return opened


@contextmanager
def damage_refused() -> Iterator[None]:
    """Turn whatever a decoder raises into the file's refusal.

    Pillow documents no set of errors for damaged files, and raises about a dozen.
    """
    try:
        yield
    except (ImageRefused, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageRefused(
            f"it has far more than the {MAX_MEGAPIXELS} million pixels that are accepted"
        ) from None
    except Exception as error:
        raise ImageRefused(
            "the file is damaged or incomplete; please export or upload it again"
        ) from error


def _open_jpeg(data: bytes) -> OpenedImage:
    structure = read_structure(data)
    if structure.scans > MAX_SCANS:
        raise ImageRefused(
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
    image.info.setdefault("exif", b"")  # else Pillow decodes the pixels to look behind them
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

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded side by side already
    return _opened(Kind.AVIF, data, AvifImagePlugin.AvifImageFile)


def _open_heic(data: bytes) -> OpenedImage:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise unsupported(Kind.HEIC) from None
    return _opened(Kind.HEIC, data, HeifImageFile)


def _opened(kind: Kind, data: bytes, decoder: Callable[[BytesIO], ImageFile]) -> OpenedImage:
    """Open with a decoder that keeps up to two canvases, and hands Pillow a copy's bytes."""
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
        # The pixels may be whole; EXIF data that cannot be read is no reason to refuse them,
        # and Pillow raises as many kinds of errors over it as over damaged files.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_size(opened: OpenedImage) -> None:
    width, height = opened.size
    measures = f"it is {width:,} x {height:,} pixels"
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise ImageRefused(
            f"{measures}, {width * height / 1e6:,.0f} million in all, and at most "
            f"{MAX_MEGAPIXELS} million are accepted; please save it smaller"
        )
    if opened.decoding_bytes > MAX_DECODING_BYTES:
        raise ImageRefused(
            f"{measures}, too many to decode from a {opened.kind.value} file; please save it "
            "smaller, or as PNG"
        )
