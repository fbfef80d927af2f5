"""Names for style files."""

from __future__ import annotations

import pytest

from domain.label import InvalidName, Label, file_name_from


@pytest.mark.parametrize("name", ["watercolour", "My style 2", "水彩", "a.b"])
def test_names_of_files_are_accepted(name: str) -> None:
    assert Label(name).name == name == file_name_from(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "a\\b",
        "a:b",
        "<a>",
        "a ",
        "x" * 101,
        "日" * 82,
        "\udcff",
        "a\nb",
    ],
)
def test_names_invalid_in_a_file_or_prompt_are_rejected(name: str) -> None:
    with pytest.raises(InvalidName, match="not a name for a file"):
        Label(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a:b", "a_b"),
        (" a. ", "a"),
        ("", None),
        ("...", None),
        ("x" * 300, "x" * 100),
        ("日" * 85, "日" * 81),
        ("a\udcff", "a_"),
    ],
)
def test_a_folder_name_is_converted_to_the_nearest_valid_name(text: str, name: str | None) -> None:
    assert file_name_from(text) == name
    assert Label(name).name == name
