"""What is said about an image while it is trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence

from domain.image import TrainingImage


def caption_of(image: TrainingImage, tags: Sequence[str], trigger_word: str | None) -> str:
    """The image's own caption, else the style's tags; the trigger word goes before.

    A caption that already has the trigger word as a word of its own, in whatever case, is
    left as it is. Without caption, tags and trigger word the caption is empty.
    """
    caption = " ".join((image.caption or "").split()) or ", ".join(tags)
    if trigger_word is None or end_of_word(caption, trigger_word) is not None:
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def end_of_word(text: str, word: str) -> int | None:
    """Where the word, in whatever case and not within another, first ends in the text; None
    where it is not there.
    """
    found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
    return found.end() if found else None
