"""The captions that each image is trained with."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from domain.image import TrainingImage
from domain.parameters import TrainingParameters

VARIANTS = 8
"""Number of variants of each caption whose tags are shuffled or dropped. All are encoded before
the run."""


def caption_of(image: TrainingImage, tags: Sequence[str], parameters: TrainingParameters) -> str:
    """The image's own caption, or else the generated one and the tags, separated by commas, with
    ``caption_prefix`` and ``caption_suffix``.

    The parts are joined by spaces, as in kohya's trainer. The trigger word is not added.
    """
    caption = " ".join((image.caption or "").split())
    if not caption:
        caption = ", ".join(filter(None, (image.generated_caption, *tags)))
    parts = (parameters.caption_prefix, caption, parameters.caption_suffix)
    return " ".join(filter(None, parts))


def varied_caption(
    caption: str, parameters: TrainingParameters, generator: torch.Generator
) -> str:
    """The caption with its tags shuffled and some of them dropped, as in kohya's trainer.

    Tags are separated by commas. The first ``keep_tokens`` stay in place; each other tag is
    dropped with probability ``caption_tag_dropout_rate``.
    """
    tags = [tag.strip() for tag in caption.split(",")]
    fixed, others = tags[: parameters.keep_tokens], tags[parameters.keep_tokens :]
    if parameters.shuffle_caption:
        order = torch.randperm(len(others), generator=generator).tolist()
        others = [others[position] for position in order]
    chances = torch.rand(len(others), generator=generator).tolist()
    rate = parameters.caption_tag_dropout_rate
    kept = [tag for tag, chance in zip(others, chances, strict=True) if chance >= rate]
    return ", ".join([*fixed, *kept])


def with_trigger_word(caption: str, word: str | None) -> str:
    """The caption with the trigger word in front.

    A caption that already contains the trigger word (as a whole word, in any case) is not
    changed.
    """
    if word is None or end_of_word(caption, word) is not None:
        return caption
    return f"{word}, {caption}" if caption else word


def end_of_word(text: str, word: str) -> int | None:
    """End position of the first occurrence of ``word`` as a whole word in any case, or None."""
    found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
    return found.end() if found else None
