"""`entrypoints.caption` and `train --caption-model` as a user runs them."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

import assets
from assets.drawing import draw_style_set
from entrypoints import caption, models, train

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("awaited_loads")]

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


def test_a_caption_file_that_cannot_be_used_is_reported_and_kept(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "image_01.txt").write_bytes("gr\u00fcn".encode("latin-1"))
    (images / "image_02.txt").write_text("x" * 20_000)
    reported = [
        "the caption image_01.txt is left out: it is not UTF-8; save it as UTF-8",
        "the caption image_02.txt is left out: it is larger than 16 KB",
    ]
    for _ in range(2):  # image_03 gets its caption in the first run
        assert caption.main([str(images), *MODEL]) == 1
        output = capsys.readouterr()
        assert [line for line in reported if line in output.err] == reported
        assert "every image has a caption" not in output.out
    assert (images / "image_01.txt").read_bytes() == b"gr\xfcn"
    assert (images / "image_03.txt").read_text("utf-8").startswith(("a ", "an "))


def test_a_caption_that_cannot_be_written_leaves_no_file(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # stands in for a full disk
    try:
        assert caption.main([str(images), *MODEL]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "image_02.txt: cannot be written" in capsys.readouterr().err
    assert texts(images).keys() == {"image_01"}


class Captioner:
    """Describes the images in this order, and raises what is no text."""

    def __init__(self, *texts: str | BaseException) -> None:
        self.texts = iter(texts)

    def describe(self, images: Sequence[bytes], _stop: object) -> list[str]:
        texts = [next(self.texts) for _ in images]
        for text in texts:
            if isinstance(text, BaseException):
                raise text
        return [str(text) for text in texts]


def test_an_image_left_without_a_caption_is_a_failure(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "load_captioner", lambda *_: Captioner(" ", "a boat"))
    assert caption.main([str(images), *MODEL]) == 1
    assert "image_02.jpg: the model generated no caption" in capsys.readouterr().err
    assert texts(images) == {"image_01": "by the artist", "image_03": "a boat\n"}


def test_captions_are_written_as_they_are_made(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_style_set(images, count=12, seed=5)
    for path in images.glob("*.txt"):
        path.unlink()
    made = Captioner(*["a boat"] * 11, KeyboardInterrupt())
    monkeypatch.setattr(models, "load_captioner", lambda *_: made)
    assert caption.main([str(images), *MODEL]) == 130
    assert len(texts(images)) == 8, "those of the first batch"


def test_images_that_share_a_caption_file_get_one_caption(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(images / "image_02.jpg").rotate(90).save(images / "image_02.png")
    assert caption.main([str(images), *MODEL]) == 0
    assert texts(images).keys() == {"image_01", "image_02", "image_03"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ([], "give --caption-model"),
        (["--caption-model", "."], "give the folder or the hub name"),
        (["--caption-model", str(SMALL), "--device", "cuda:77"], "--device cuda:77"),
    ],
)
def test_invalid_input_is_reported_with_a_remedy(
    images: Path, capsys: pytest.CaptureFixture[str], options: list[str], remedy: str
) -> None:
    assert caption.main([str(images), *options]) == 2
    assert remedy in capsys.readouterr().err
    assert list(texts(images)) == ["image_01"]


def test_a_run_trains_on_generated_captions_and_shows_them(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(images), "--out", "out", *MODEL, "--epochs", "1", "--resolution", "64"]
    assert train.main([*command, "--preview-share", "0"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 images have a caption" in printed
    assert "2 captions were generated" in printed
    (stored,) = (tmp_path / "out").glob("jobs/*/captions.json")
    made = list(json.loads(stored.read_text()).values())
    assert len(made) == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("caption generated by a model") == 2
    assert all(text in page for text in made)
    assert list(texts(images)) == ["image_01"], "the images' folder is only read"
