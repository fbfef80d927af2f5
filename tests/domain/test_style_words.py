import pytest

from domain.captions import without_style_words


@pytest.mark.parametrize(
    ("caption", "content"),
    [
        ("a painting of a red fox in the snow", "a red fox in the snow"),
        ("an illustration of two foxes", "two foxes"),
        ("A black and white drawing of a cat", "a cat"),
        ("an oil painting showing a harbour", "a harbour"),
        ("pen and ink sketches of hands", "hands"),
        ("watercolor of a lighthouse", "a lighthouse"),
        ("an illustration in flat style of a fox", "a fox"),
        ("a fox in the style of van gogh, at night", "a fox, at night"),
        ("a fox in a soft watercolor style", "a fox"),
        ("a fox, digital painting", "a fox"),
        ("a fox, drawn in cartoon style.", "a fox"),
        ("a painting", ""),
    ],
)
def test_medium_words_are_removed(caption: str, content: str) -> None:
    assert without_style_words(caption).lower() == content.lower()


@pytest.mark.parametrize(
    "caption",
    [
        "a woman looks at a painting of a ship",
        "a man in a hat and a coat",
        "a large red circle on a blue background",
        "a picture frame on a wall",
        "a child in an inkwell",
    ],
)
def test_content_words_are_kept(caption: str) -> None:
    assert without_style_words(caption) == caption
