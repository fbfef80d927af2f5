"""Unreadable files and folders are user errors, not defects."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from adapters.images.folder import find_caption, find_images, passed_over, read_own
from domain.captions import caption_suffixes
from domain.errors import UserError


def reject(*_: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_an_unreadable_folder_is_named_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "iterdir", reject)
    with pytest.raises(UserError) as rejected:
        find_images(tmp_path)
    assert str(rejected.value) == f"{tmp_path}: cannot be read (Permission denied)"


def test_a_folder_that_the_system_cannot_look_up_is_named_in_the_error() -> None:
    with pytest.raises(UserError, match=r"x: cannot be read \(File name too long\)"):
        find_images(Path("x" * 300))


def test_an_unreadable_file_is_named_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_bytes", reject)
    with pytest.raises(UserError) as rejected:
        read_own(tmp_path / "a.png")
    assert str(rejected.value) == f"{tmp_path / 'a.png'}: cannot be read (Permission denied)"


def test_images_are_recognised_by_their_extensions(tmp_path: Path) -> None:
    ours = ["a.JPG", "b.jpeg", "c.jpe", "d.jfif", "e.png", "f.webp"]
    others = ["g.gif", "h.heic", "i.tiff", "j.psd", "k.avif"]
    for name in (*others, *ours, ".hidden.png", "notes.txt", "png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path) == [*ours, *others]


@pytest.mark.parametrize(("name", "found"), [("a.txt", True), ("a.TXT", True), ("b.txt", False)])
def test_a_caption_has_its_images_name(tmp_path: Path, name: str, found: bool) -> None:
    (tmp_path / name).write_text("words")
    assert find_caption(tmp_path / "a.png") == (tmp_path / name if found else None)


def test_skipped_files_are_listed_with_the_reason(tmp_path: Path) -> None:
    names = ["a.png", "b.png"]
    for name in (*names, "a.txt", "b.TXT", "a.png.txt", "c.txt", "a.caption", "m.jsonl", "x.zip"):
        (tmp_path / name).touch()
    for name in (".DS_Store", ".c.png.icloud", "Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    besides = tmp_path / "out" / "first"
    besides.mkdir(parents=True)
    assert passed_over(tmp_path, names, besides) == [
        "3 hidden files (1 in iCloud only: download first)",
        "a.caption (a caption is <name>.txt)",
        "a.png.txt (a caption is a.txt)",
        "b.txt/ (a folder)",
        "c.txt (no image of that name)",
        "gone.txt (a link to nothing)",
        "loop.txt (a link to nothing)",
        "m.jsonl (a caption is <name>.txt)",
        "more/ (a folder)",
        "x.zip",
    ]


def test_the_extension_of_captions_decides_which_files_are_skipped(tmp_path: Path) -> None:
    for name in ("a.png", "a.txt", "a.caption", "a.png.caption", "b.caption", "c.jsonl"):
        (tmp_path / name).touch()
    assert passed_over(tmp_path, ["a.png"], tmp_path / "out", caption_suffixes("caption")) == [
        "a.png.caption (a caption is a.caption)",
        "a.txt (a caption is <name>.caption)",
        "b.caption (no image of that name)",
        "c.jsonl (a caption is <name>.caption)",
    ]


def test_kohya_style_folders_are_read_on_request(tmp_path: Path) -> None:
    for name in ("10_cats/a.png", "10_cats/a.txt", "2_dogs/a.png", "0_none/a.png", "more/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "10_cats" / "b.txt").touch()
    names = find_images(tmp_path, repeats_from_folders=True)
    assert names == ["10_cats/a.png", "2_dogs/a.png"]
    assert passed_over(tmp_path, names, tmp_path / "out") == [
        "0_none/ (a folder)",
        "more/ (a folder)",
        "10_cats/b.txt (no image of that name)",
    ]
    with pytest.raises(UserError, match=r"or --repeats-from-folders for folders such as 10_cats"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="no image in folders named like 10_style"):
        find_images(tmp_path / "more", repeats_from_folders=True)


@pytest.mark.parametrize("name", ["20230101_trip", f"{'9' * 200}_style"])
def test_a_number_that_is_not_meant_as_repeats_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.png").touch()
    with pytest.raises(UserError, match="repeats per epoch; rename it, for at most 1000"):
        find_images(tmp_path, repeats_from_folders=True)
