from __future__ import annotations

import pytest

from adapters.diffusion.data.captions import caption_of, end_of_word
from domain.image import ImageFacts, TrainingImage


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
    assert caption_of(image(caption), tags, trigger_word) == expected


@pytest.mark.parametrize(
    ("text", "end"), [("by Ink and ink", 6), ("pink inks", None), ("a c++ one", 5)]
)
def test_the_end_of_a_word(text: str, end: int | None) -> None:
    assert end_of_word(text, "c++" if "+" in text else "ink") == end
