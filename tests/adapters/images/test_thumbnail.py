"""A style file's thumbnail looks like the image that the user gave."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapters.images.thumbnail import SIDE, thumbnail
from tests.adapters.images.files import CASES, furthest


def shown(file: Path) -> Image.Image:
    """The thumbnail of a file, decoded."""
    head, _, data = thumbnail(file).partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(
    ("image", "level"),
    [
        (Image.fromarray(np.full((300, 300), 0x8000, np.uint16)), 128),
        (Image.new("RGBA", (300, 300), (0, 0, 0, 0)), 255),
        (Image.new("L", (300, 300), 90), 90),
    ],
    ids=["16 bits", "transparent", "grey"],
)
def test_every_kind_of_pixels_is_shown(tmp_path: Path, image: Image.Image, level: int) -> None:
    image.save(tmp_path / "image.png")
    plain = Image.new("RGB", (SIDE, SIDE), (level,) * 3)
    assert furthest(shown(tmp_path / "image.png"), plain) <= 2


def test_a_colour_profile_is_applied() -> None:
    middle = shown(CASES / "Display-P3.jpg").resize((1, 1), box=(120, 120, 136, 136))
    # Computed from the profile's primaries and curve, CSS Color 4, section 10.
    assert furthest(middle, Image.new("RGB", (1, 1), (219, 37, 48))) <= 6


def test_a_gif_file_is_accepted(tmp_path: Path) -> None:
    Image.new("P", (300, 200)).save(tmp_path / "image.gif")
    assert shown(tmp_path / "image.gif").size == (256, 171)
