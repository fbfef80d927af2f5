"""A caption's text file, as editors save it."""

from __future__ import annotations

import codecs

SUFFIXES = (".txt", ".TXT")
"""A caption has its image's name with one of these, looked for in this order."""
MAX_CAPTION_BYTES = 16 * 1024


def caption_suffixes(extension: str) -> tuple[str, str]:
    """The suffixes for kohya's ``caption_extension``, which may lack its dot."""
    suffix = f".{extension.removeprefix('.')}"
    return suffix, suffix.upper()


_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


class CaptionRefused(Exception):
    """The file is no text that can be read; says what to do."""


def read_caption(data: bytes) -> str:
    """The caption in one line, empty where there is none.

    Raises:
        CaptionRefused: it is neither UTF-8 nor marked as UTF-16 or UTF-32.
    """
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise CaptionRefused("it is not UTF-8; save it as UTF-8") from None
    if "\0" in text:  # UTF-16 without a mark is valid UTF-8
        raise CaptionRefused("it has NUL characters, as UTF-16 has; save it as UTF-8")
    return " ".join(text.split())
