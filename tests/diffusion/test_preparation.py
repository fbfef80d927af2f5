"""Truncated captions are reported, and the trigger word is never truncated."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.preparation import prepare
from adapters.images.decode import decode
from domain.image import TrainingImage
from tests.diffusion.runs import plan_of

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")
LONG = "a red circle " * 40


def captions_of(
    base: BaseModel, images: tuple[TrainingImage, ...], *captions: str, trigger_word: str | None
) -> list[str]:
    worded = [
        replace(image, caption=caption) for image, caption in zip(images, captions, strict=False)
    ]
    plan = plan_of(worded, trigger_word=trigger_word)
    return prepare(base, plan, decode, CPU).captions


def test_a_repeated_image_is_encoded_once(
    base: BaseModel, images: tuple[TrainingImage, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a folder ``3_style``, with an image beside it."""
    order = [0, 0, 0, 4, 1, 1, 1]
    plan = plan_of([images[i] for i in order], random_flip=True, shuffle_caption=True)
    passes: list[int] = []
    encode = base.vae.encode

    def noted(pixels: torch.Tensor) -> Any:
        passes.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(base.vae, "encode", noted)
    repeated = prepare(base, plan, decode, CPU)
    assert sum(passes) == 2 * 3
    once = prepare(base, replace(plan, images=tuple(images[i] for i in (0, 4, 1))), decode, CPU)
    assert len(repeated.dataset.captions) == len(once.dataset.captions)
    assert repeated.captions == [once.captions[i] for i in (0, 0, 0, 1, 2, 2, 2)]
    for position, number in enumerate((0, 0, 0, 1, 2, 2, 2)):
        of_repeated, of_once = (
            (
                data.dataset.sizes[i],
                data.dataset.rows((i,), (True,)),
                data.dataset.rows_of_captions((i,), (False,)),
                data.dataset.rows_of_captions((i,), (False,), (5,)),
            )
            for data, i in ((repeated, position), (once, number))
        )
        assert of_repeated == of_once


def test_truncated_captions_are_reported_once_with_the_first_image(
    base: BaseModel, images: tuple[TrainingImage, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        captions_of(base, images, "short", LONG, LONG, trigger_word=None)
    assert [record.getMessage() for record in caplog.records] == [
        f"the captions of 2 images (first: {images[1].name}) are cut to 75 tokens: shorten them, "
        "or raise max_token_length"
    ]


def test_a_caption_of_the_maximum_length_is_not_reported(
    base: BaseModel, images: tuple[TrainingImage, ...], caplog: pytest.LogCaptureFixture
) -> None:
    words = ["red"] * 75
    assert len(base.tokenizer(" ".join(words)).input_ids) == 77
    with caplog.at_level(logging.WARNING):
        captions_of(base, images, " ".join(words), trigger_word=None)
        assert not caplog.records
        captions_of(base, images, " ".join([*words, "red"]), trigger_word=None)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("word", ["inkwash", "my-style"])
def test_a_truncated_trigger_word_is_moved_to_the_front(
    base: BaseModel, images: tuple[TrainingImage, ...], word: str
) -> None:
    late, early, absent = f"{LONG}in {word}", f"in {word}, {LONG}x", f"{LONG}x"
    assert captions_of(base, images, late, early, absent, trigger_word=word) == [
        f"{word}, {late}",
        early,
        f"{word}, {absent}",
    ]
