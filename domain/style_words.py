"""Remove words for the medium from a generated caption.

A style learns what the captions do not mention. Captioners often name the medium of a painted
image, which is part of the style.
"""

from __future__ import annotations

import re

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
