"""Colour profiles are applied by their content, not by their names."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from adapters.images.decode import decode, load
from adapters.images.opening import open_image
from tests.adapters.images.files import CASES, encode, furthest, scene, srgb_profile


@pytest.mark.parametrize(
    ("case", "right"),
    [
        # Computed from the primaries and curves of the profiles, CSS Color 4, section 10.
        ("Display-P3.jpg", (219, 37, 48)),
        ("Display-P3-Gamut-with-sRGB-Transfer.jpg", (219, 37, 48)),
        ("DCI-P3-D65-Gamut-with-sRGB-Transfer.jpg", (219, 37, 48)),
    ],
)
def test_a_wide_gamut_with_srgb_in_its_name_is_converted(
    case: str, right: tuple[int, int, int]
) -> None:
    image = decode((CASES / case).read_bytes())
    assert furthest(image.crop((150, 150, 151, 151)), Image.new("RGB", (1, 1), right)) <= 2


@pytest.mark.parametrize("case", ["icc-gimp-linear.png", "icc-other-linear.png"])
def test_linear_light_with_srgb_in_its_name_is_converted(case: str) -> None:
    stored = np.asarray(Image.open(CASES / case).convert("RGB")) / 255
    # The transfer function of sRGB, IEC 61966-2-1.
    curved = np.where(stored <= 0.0031308, 12.92 * stored, 1.055 * stored ** (1 / 2.4) - 0.055)
    image = np.asarray(decode((CASES / case).read_bytes())) / 255
    assert np.abs(image - curved).max() * 255 <= 2


def test_pixels_in_srgb_stay_as_they_are_whatever_the_profile_is_called() -> None:
    named = "sRGB".encode("utf-16-be")
    nameless = srgb_profile().replace(named, "odd!".encode("utf-16-be"))
    for profile in (srgb_profile(), nameless):
        assert furthest(decode(encode(scene(), "PNG", icc_profile=profile)), scene()) == 0


def test_a_profile_of_colours_is_applied_to_an_image_in_grey() -> None:
    data = encode(Image.new("L", (300, 300), 120), "PNG", icc_profile=srgb_profile())
    assert decode(data).getpixel((0, 0)) == (120, 120, 120)
    assert load(open_image(data)).notes == ()


def test_a_profile_that_cannot_be_used_is_reported() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"nonsense", lab):
        notes = load(open_image(encode(scene(), "PNG", icc_profile=profile))).notes
        assert notes == ("its colour profile cannot be used and is ignored",)


def test_a_colour_profile_is_applied() -> None:
    usual = srgb_profile()
    # A profile whose red and blue primaries are exchanged shows red where blue is stored.
    red, blue = usual.index(b"rXYZ"), usual.index(b"bXYZ")
    swapped = bytearray(usual)
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    profile = bytes(swapped)
    for mode in ("RGB", "RGBA", "P"):
        image = Image.new("RGB", (256, 256), "blue").convert(mode)
        red_level, _, blue_level = decode(encode(image, "PNG", icc_profile=profile)).getpixel(
            (0, 0)
        )  # type: ignore[misc]  # three numbers, as the mode is RGB
        assert red_level > 250
        assert blue_level < 5


def grey_profile() -> bytes:
    """The profile of a scanner that stores linear light."""
    name = b"desc" + bytes(4) + struct.pack(">I", 5) + b"grey".ljust(84, b"\x00")
    white = b"XYZ " + bytes(4) + struct.pack(">III", 63190, 65536, 54061)
    curve = b"curv" + bytes(8)
    table, body = struct.pack(">I", 3), b""
    for tag, content in ((b"desc", name), (b"wtpt", white), (b"kTRC", curve)):
        table += tag + struct.pack(">II", 128 + 40 + len(body), len(content))
        body += content
    kind = struct.pack(">I", 0x02100000) + b"mntrGRAYXYZ ".ljust(24, b"\x00") + b"acsp"
    header = struct.pack(">I", 168 + len(body)).ljust(8, b"\x00") + kind.ljust(60, b"\x00")
    return header + white[8:].ljust(60, b"\x00") + table + body


@pytest.mark.parametrize(
    ("mode", "options"), [("L", {}), ("L", {"transparency": 3}), ("LA", {}), ("I;16", {})]
)
def test_a_profile_of_grey_is_applied(mode: str, options: dict[str, Any]) -> None:
    levels = np.full((256, 256), 128 * 257, np.uint16)
    image = Image.fromarray(levels if mode == "I;16" else levels.astype(np.uint8))
    image = image if image.mode == mode else image.convert(mode)
    decoded = decode(encode(image, "PNG", icc_profile=grey_profile(), **options))
    assert decoded.getcolors() == [(256 * 256, (188, 188, 188))]


@pytest.mark.parametrize("profile", [b"nonsense", bytes(200)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_a_broken_colour_profile_is_ignored(profile: bytes, mode: str) -> None:
    image = scene().convert(mode)
    decoded = decode(encode(image, "PNG", icc_profile=profile))
    assert furthest(decoded, image.convert("RGB")) == 0
