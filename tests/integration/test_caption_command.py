"""`entrypoints.caption` and `train --caption-model` as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import assets
from assets.drawing import draw_style_set
from entrypoints import caption, train

pytestmark = pytest.mark.integration

SMALL = Path(assets.__file__).parent / "small_captioner"
SMALL_BASE = Path(assets.__file__).parent / "small_base"
MODEL = ["--caption-model", str(SMALL), "--device", "cpu"]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images; the first has a caption."""
    for name in ("CAPTION_MODEL", "KEEP_STYLE_WORDS", "DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BASE_MODEL", str(SMALL_BASE))
    monkeypatch.chdir(tmp_path)
    paths = draw_style_set(tmp_path / "images", count=3, seed=5)
    for path in paths:
        path.with_suffix(".txt").unlink()
    (tmp_path / "images" / "image_01.txt").write_text("by the artist")
    return tmp_path / "images"


def texts(images: Path) -> dict[str, str]:
    return {path.stem: path.read_text("utf-8") for path in images.glob("*.txt")}


def test_missing_captions_are_written_and_existing_ones_kept(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "image_02.txt").write_text("")
    assert caption.main([str(images), *MODEL]) == 0
    found = texts(images)
    assert (found["image_01"], found["image_02"]) == ("by the artist", "")
    assert found["image_03"].startswith(("a ", "an "))
    assert f"image_03.txt: {found['image_03']}" in capsys.readouterr().out
    assert caption.main([str(images), *MODEL]) == 0
    assert texts(images) == found
    assert "every image has a caption" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ([], "give --caption-model"),
        (["--caption-model", "."], "give the folder or the hub name"),
        (["--caption-model", str(SMALL), "--device", "cuda:77"], "--device cuda:77"),
    ],
)
def test_wrong_input_is_told_with_the_remedy(
    images: Path, capsys: pytest.CaptureFixture[str], options: list[str], remedy: str
) -> None:
    assert caption.main([str(images), *options]) == 2
    assert remedy in capsys.readouterr().err
    assert list(texts(images)) == ["image_01"]


def test_a_run_trains_on_made_captions_and_shows_them(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(images), "--out", "out", *MODEL, "--epochs", "1", "--resolution", "64"]
    assert train.main([*command, "--preview-share", "0"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 images have a caption" in printed
    assert "2 captions were made" in printed
    (stored,) = (tmp_path / "out").glob("jobs/*/captions.json")
    made = list(json.loads(stored.read_text()).values())
    assert len(made) == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("caption made by a model") == 2
    assert all(text in page for text in made)
    assert list(texts(images)) == ["image_01"], "the images' folder is only read"
