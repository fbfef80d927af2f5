"""The caption that each image is trained with."""

from __future__ import annotations

import re
from collections.abc import Sequence

from domain.image import TrainingImage


def caption_of(image: TrainingImage, tags: Sequence[str], trigger_word: str | None) -> str:
    """The image's own caption, else the tags, with the trigger word in front.

    A caption that already contains the trigger word (as a whole word, in any case) is not
    changed. Without caption, tags and trigger word the result is empty.
    """
    caption = " ".join((image.caption or "").split()) or ", ".join(tags)
    if trigger_word is None or end_of_word(caption, trigger_word) is not None:
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def end_of_word(text: str, word: str) -> int | None:
    """End position of the first occurrence of ``word`` as a whole word in any case, or None."""
    found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
    return found.end() if found else None
