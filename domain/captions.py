"""Read a caption's text file; remove words for the medium from a generated caption.

A style learns what the captions do not mention. Captioners often name the medium of a painted
image, which is part of the style.
"""

from __future__ import annotations

import codecs
import re

SUFFIXES = (".txt", ".TXT")
"""Suffixes of caption files, tried in this order after the image's base name."""
MAX_CAPTION_BYTES = 16 * 1024


def caption_suffixes(extension: str | None) -> tuple[str, str]:
    """The suffixes for kohya's ``caption_extension``, which may lack its dot.

    None stands for ``SUFFIXES``.
    """
    if extension is None:
        return SUFFIXES
    suffix = f".{extension.removeprefix('.')}"
    return suffix, suffix.upper()


_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: its BOM starts with UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


class CaptionRejected(Exception):
    """The caption file is not readable text; the message has the remedy."""


def read_caption(data: bytes) -> str:
    """Return the caption as one line, or an empty string for an empty file.

    Raises:
        CaptionRejected: the data is neither UTF-8 nor UTF-16 or UTF-32 with a BOM.
    """
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise CaptionRejected("it is not UTF-8; save it as UTF-8") from None
    if "\0" in text:  # UTF-16 without a BOM may be valid UTF-8
        raise CaptionRejected("it has NUL characters, as UTF-16 has; save it as UTF-8")
    return " ".join(text.split())


MEDIA = (
    "painting", "illustration", "drawing", "sketch", "watercolor", "watercolour", "picture",
    "photo", "photograph", "image", "artwork", "engraving", "cartoon", "rendering",
)  # fmt: skip
"""Nouns for the medium: "a painting of a fox" becomes "a fox"."""
MATERIALS = (
    "watercolor", "watercolour", "oil", "acrylic", "gouache", "ink", "pen and ink", "pencil",
    "charcoal", "pastel", "crayon", "digital", "vector", "cartoon", "anime", "black and white",
)  # fmt: skip
"""Words before such a noun, which are removed with it."""

_MEDIUM = rf"(?:an? |the )?(?:(?:{'|'.join(MATERIALS)}) )*(?:{'|'.join(MEDIA)})(?:e?s)?"
_IN_STYLE = re.compile(
    r",? (?:(?:done|drawn|painted) )?in "
    r"(?:the style of [^,]+|(?:an? |the )?(?:[\w-]+ ){0,3}style\b)",
    re.IGNORECASE,
)
_MEDIUM_OF = re.compile(rf"^{_MEDIUM} (?:of|showing|depicting) ", re.IGNORECASE)
_MEDIUM_ALONE = re.compile(rf"(?:^|, ){_MEDIUM}(?=,|$)", re.IGNORECASE)


def without_style_words(caption: str) -> str:
    """The caption without its words for the medium and the style; empty if it has no others.

    Removed are "in the style of ..." up to the next comma, "in (a) ... style" with up to three
    words between, "a <medium> of" at the start, and parts between commas that name only a medium.
    A medium within a sentence stays: "a woman looks at a painting".
    """
    rest = _IN_STYLE.sub("", caption)
    rest = _MEDIUM_OF.sub("", rest)
    rest = _MEDIUM_ALONE.sub("", rest)
    return rest.strip(" ,.")
