"""The small captioner: its files, and its captions of held-out drawings."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import assets
from adapters.captioner import TransformersCaptioner
from application.stop_signal import StopSignal
from assets import train_captioner
from assets.drawing import draw_scene, draw_styled_scene

FOLDER = Path(assets.__file__).parent / "small_captioner"
HELD_OUT_SEED = [20, 2]
"""Seed of drawings that the captioner was not trained on."""
Drawn = tuple[Image.Image, str]


def test_the_checksums_list_every_file_and_match() -> None:
    lines = (FOLDER / "SHA256SUMS").read_text("utf-8").splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    actual = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FOLDER.iterdir()
        if path.name != "SHA256SUMS"
    }
    assert listed == actual


def test_the_captioner_is_small_and_nothing_is_pickled() -> None:
    files = list(FOLDER.iterdir())
    assert {path.suffix for path in files} == {".safetensors", ".json", ".txt", ".md", ""}
    assert sum(path.stat().st_size for path in files) < 3_000_000


@pytest.fixture(scope="module")
def captioner() -> TransformersCaptioner:
    return TransformersCaptioner(str(FOLDER), "cpu", decode)


def decode(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data))


@pytest.mark.integration
@pytest.mark.parametrize("draw", [draw_scene, draw_styled_scene])
def test_held_out_drawings_are_described(
    captioner: TransformersCaptioner, draw: Callable[[np.random.Generator, int], Drawn]
) -> None:
    rng = np.random.default_rng(HELD_OUT_SEED)
    images, captions = zip(*(draw(rng, 160) for _ in range(60)), strict=True)
    described = captioner.describe([png(image) for image in images], StopSignal())
    wrong = [
        (caption, text)
        for caption, text in zip(captions, described, strict=True)
        if without_sizes(text) != without_sizes(caption)
    ]
    assert len(wrong) <= 0.05 * len(images), wrong


@pytest.mark.integration
def test_the_training_is_a_function_of_its_seed_and_lowers_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(train_captioner, "_BATCH_SIZE", 8)
    caplog.set_level("INFO", "assets.train_captioner")

    def trained(name: str) -> bytes:
        options = ["--seed", "3", "--plain", "4", "--styled", "4", "--steps", "8"]
        options += ["--out", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", ["train_captioner", *options])
        train_captioner.main()
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert trained("first") == trained("again")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", caplog.text)]
    assert losses[-1] < losses[0]


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def without_sizes(caption: str) -> str:
    """The caption's shapes, colours, relation and background, without articles and sizes."""
    return re.sub(r"\b(an?|small|large) ", "", caption)
