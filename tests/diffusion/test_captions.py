from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from adapters.diffusion.data.captions import (
    caption_of,
    varied_caption,
    with_trigger_word,
)
from domain.image import ImageFacts, TrainingImage
from domain.parameters import TrainingParameters


def image(caption: str | None) -> TrainingImage:
    return TrainingImage("a.png", b"", ImageFacts(256, 256, "", 0), caption)


@pytest.mark.parametrize(
    ("caption", "tags", "trigger_word", "expected"),
    [
        ("a red fox", ("ink",), None, "a red fox"),
        ("  a red\n fox \n", ("ink",), None, "a red fox"),
        (None, ("ink", "wash"), None, "ink, wash"),
        (" \n", ("ink", "wash"), None, "ink, wash"),
        (None, ("ink",), "zxc", "zxc, ink"),
        (None, (), "zxc", "zxc"),
        (None, (), None, ""),
        ("a red fox", (), "zxc", "zxc, a red fox"),
        ("a ZXC fox", (), "zxc", "a ZXC fox"),
        ("a pink fox", (), "ink", "ink, a pink fox"),
        ("a fox, c++ style", (), "c++", "a fox, c++ style"),
    ],
)
def test_caption(
    caption: str | None, tags: tuple[str, ...], trigger_word: str | None, expected: str
) -> None:
    text = caption_of(image(caption), tags, parameters())
    assert with_trigger_word(text, trigger_word) == expected


def parameters(**named: Any) -> TrainingParameters:
    return TrainingParameters(epochs=1, resolution=64, **named)


def varied(caption: str, count: int = 200, **named: Any) -> list[str]:
    generator = torch.Generator().manual_seed(1)
    return [varied_caption(caption, parameters(**named), generator) for _ in range(count)]


def test_prefix_and_suffix_are_joined_with_spaces() -> None:
    named = parameters(caption_prefix="art of", caption_suffix="on paper")
    assert caption_of(image("a fox"), (), named) == "art of a fox on paper"
    assert caption_of(image(None), ("ink", "wash"), named) == "art of ink, wash on paper"


def test_tags_follow_a_generated_caption() -> None:
    made = replace(image(None), generated_caption="a red fox")
    assert caption_of(made, ("ink", "wash"), parameters()) == "a red fox, ink, wash"
    own = replace(made, caption="a vixen")
    assert caption_of(own, ("ink", "wash"), parameters()) == "a vixen"


def test_shuffled_tags_are_all_there_in_every_order() -> None:
    found = varied("a,  b, c", shuffle_caption=True)
    assert set(found) == {"a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a"}


def test_kept_tokens_stay_in_front() -> None:
    found = varied("a, b, c, d", shuffle_caption=True, keep_tokens=2, caption_tag_dropout_rate=0.5)
    assert all(text.startswith("a, b") for text in found)
    assert {"a, b", "a, b, c, d", "a, b, d, c", "a, b, c", "a, b, d"} == set(found)


def test_each_tag_is_left_out_at_the_rate() -> None:
    found = varied("a, b, c, d", count=1000, caption_tag_dropout_rate=0.25)
    for tag in "abcd":
        assert sum(tag in text for text in found) == pytest.approx(750, abs=60)
    order = [text.replace(", ", "") for text in found]
    assert all(text == "".join(sorted(text)) for text in order)
