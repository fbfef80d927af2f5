"""Recognise a file's format by its first bytes."""

from __future__ import annotations

import re
from enum import Enum

from domain.image import ImageRejected


class Kind(Enum):
    """Supported image formats."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WebP"
    AVIF = "AVIF"
    HEIC = "HEIC"


_ACCEPTED = (
    (Kind.JPEG, re.compile(rb"\xff\xd8\xff")),
    (Kind.PNG, re.compile(rb"\x89PNG\r\n\x1a\n")),
    (Kind.WEBP, re.compile(rb"RIFF....WEBP", re.DOTALL)),
    # The first box of an ISO base media file lists its compatible brands.
    (Kind.AVIF, re.compile(rb"\x00\x00..ftyp(?:....)*?avi[fs]", re.DOTALL)),
    (Kind.HEIC, re.compile(rb"\x00\x00..ftyp(?:he[a-z]{2}|mif1|msf1)", re.DOTALL)),
)

_SAVE_AS = "please send it as JPEG, PNG or WebP"
_SEND_IT = "please send the image itself"
_OTHERS = (
    (rb"GIF8", "a GIF file", _SAVE_AS),
    (rb"BM", "a BMP file", _SAVE_AS),
    (rb"II\*\x00|MM\x00\*|....ftypcrx", "a TIFF or camera raw file", _SAVE_AS),
    (rb"8BPS", "a Photoshop file", _SAVE_AS),
    (rb"%PDF", "a PDF file", _SAVE_AS),
    (rb"\xff\x0a|....JXL ", "a JPEG XL file", _SAVE_AS),
    (rb"....jP  ", "a JPEG 2000 file", _SAVE_AS),
    (rb"....(?:ftyp|moov|mdat|wide)|\x1aE\xdf\xa3", "a video (MOV, MP4 or WebM)", _SAVE_AS),
    (rb"\x1f\x8b", "a gzip archive", _SEND_IT),
    (rb"PK\x03\x04", "a ZIP archive", _SEND_IT),
    (rb"version https://git-lfs", "a Git LFS pointer and not the image", _SEND_IT),
    (rb"\s*(?:<\?xml[^>]*>\s*)?<Error>\s*<Code>", "an error page of the storage", _SEND_IT),
    (rb"\s*(?:<!--.*?-->\s*)?<(?:!doctype html|html)", "a web page", _SEND_IT),
    (rb"\s*(?:<\?xml.*?)?<(?:!doctype )?svg", "an SVG file", _SAVE_AS),
    (rb"\s*<\?xml", "an XML file", _SEND_IT),
)
"""Unsupported formats: first bytes, name, and remedy."""

_BEGINNING = 1024
"""Number of bytes that identify a format."""


def kind_of(data: bytes) -> Kind:
    """The format of a file.

    Raises:
        ImageRejected: the file is empty or unsupported; names the format if known.
    """
    if not data:
        raise ImageRejected("the file is empty")
    beginning = data[:_BEGINNING].removeprefix(b"\xef\xbb\xbf")
    for kind, pattern in _ACCEPTED:
        if pattern.match(beginning):
            return kind
    for signature, name, remedy in _OTHERS:
        if re.match(signature, beginning, re.DOTALL | re.IGNORECASE):
            raise ImageRejected(f"it is {name}; {remedy}")
    raise ImageRejected(f"it is not an image of a supported format; {_SAVE_AS}")


def unsupported(kind: Kind) -> ImageRejected:
    """The error for a format whose decoder is not installed."""
    return ImageRejected(f"it is {_article(kind)} {kind.value} file; {_SAVE_AS}")


def _article(kind: Kind) -> str:
    return "an" if kind is Kind.AVIF else "a"
