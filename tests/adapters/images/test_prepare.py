"""Which images are rejected for their content, and the facts of accepted ones."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from adapters.images import opening
from adapters.images.decode import decode
from adapters.images.opening import open_image
from adapters.images.prepare import check_sides, difference_hash, prepare
from domain.buckets import bucket_of
from domain.image import MIN_SIDE_PIXELS, NEAR_DUPLICATE_BITS, ImageRejected
from tests.adapters.images.files import SIZE, chunk, encode, facts_of, png, scene


def use(data: bytes) -> None:
    check_sides(open_image(data))
    facts_of(data)


def reason(data: bytes) -> str:
    with pytest.raises(ImageRejected) as caught:
        use(data)
    return str(caught.value)


def png_that_claims(width: int, height: int) -> bytes:
    body = zlib.compress(bytes(1000))
    return png((width, height, 8, 2, 0, 0, 0), chunk(b"IDAT", body))


def webp_that_claims(width: int, height: int) -> bytes:
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    vp8x = b"VP8X" + struct.pack("<I", 10) + b"\x02\x00\x00\x00" + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x


# --- what comes out ----------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [64, 512, 768])
def test_an_image_is_reduced_to_the_size_that_it_is_trained_at(resolution: int) -> None:
    prepared = prepare(open_image(encode(scene(), "PNG")), resolution)
    image = Image.open(BytesIO(prepared.data))
    assert image.mode == "RGB"
    assert image.size == bucket_of(*SIZE, resolution)
    assert (prepared.facts.width, prepared.facts.height) == SIZE


def test_facts_depend_on_the_pixels_and_not_on_the_file() -> None:
    facts = facts_of(encode(scene(), "PNG"))
    assert facts == facts_of(encode(scene(), "WEBP", lossless=True))
    assert facts.sha256 != facts_of(encode(scene(1), "PNG")).sha256
    assert 0 <= facts.perceptual_hash < 2**64


# --- what is rejected ---------------------------------------------------------------------


@pytest.mark.parametrize("percent", [1, 3, 10, 25, 50, 75, 90, 97, 99])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_a_truncated_file_is_rejected(format: str, percent: int) -> None:
    complete = encode(scene(), format)
    cut = complete[: max(40, len(complete) * percent // 100)]
    assert "damaged or incomplete" in reason(cut)


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_a_truncated_progressive_jpeg_is_rejected(percent: int) -> None:
    complete = encode(scene(), "JPEG", progressive=True)
    assert "damaged or incomplete" in reason(complete[: len(complete) * percent // 100])


@pytest.mark.parametrize("percent", [30, 60, 90])
def test_a_png_with_altered_pixels_is_rejected(percent: int) -> None:
    data = bytearray(encode(scene(), "PNG"))
    data[len(data) * percent // 100] ^= 0xFF
    assert "damaged or incomplete" in reason(bytes(data))


@pytest.mark.parametrize("size", [(255, 600), (600, 255), (1, 1)])
def test_a_small_image_is_rejected_with_its_size(size: tuple[int, int]) -> None:
    text = reason(encode(Image.new("RGB", size), "PNG"))
    assert text == f"it is {size[0]} x {size[1]} pixels, and each side needs at least 256"


def test_an_image_of_just_the_smallest_size_is_accepted() -> None:
    use(encode(scene(size=(MIN_SIDE_PIXELS, MIN_SIDE_PIXELS)), "PNG"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("data", "measured"),
    [
        (png_that_claims(10_000, 10_001), "10,000 x 10,001 pixels, 100 million"),
        (png_that_claims(60_000, 50_000), "60,000 x 50,000 pixels, 3,000 million"),
        (png_that_claims(2**31 - 1, 2**31 - 1), "2,147,483,647 x 2,147,483,647 pixels"),
        (webp_that_claims(16_383, 16_383), "far more than the 100 million pixels"),
    ],
)
def test_a_decompression_bomb_is_rejected_before_it_is_decoded(data: bytes, measured: str) -> None:
    text = reason(data)
    assert measured in text
    assert "100 million" in text


def test_an_image_of_just_the_largest_area_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_MEGAPIXELS", 1)
    assert decode(encode(Image.new("RGB", (1000, 1000)), "PNG")).size == (1000, 1000)
    assert "1 million in all" in reason(encode(Image.new("RGB", (1001, 1000)), "PNG"))


def test_an_image_that_needs_too_much_memory_is_rejected_by_its_header(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Per pixel WebP takes four times as much as PNG, and a progressive JPEG more than twice."""
    monkeypatch.setattr(opening, "MAX_DECODING_BYTES", 66 * 1024**2)
    image = scene(size=(640, 600))
    decode(encode(image, "PNG"))
    decode(encode(image, "JPEG", subsampling=0))
    for data in (
        encode(image, "WEBP"),
        encode(image, "JPEG", subsampling=0, progressive=True),
    ):
        assert "640 x 600 pixels, too many to decode" in reason(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_opening_an_image_decodes_no_pixels(format: str) -> None:
    opened = open_image(encode(scene(), format))
    assert getattr(opened.image, "tile", None) or format == "WEBP"  # what Pillow has still to load


def test_running_out_of_memory_is_not_blamed_on_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(MemoryError):
        facts_of(encode(scene(), "PNG"))


def test_an_image_of_one_colour_throughout_is_rejected() -> None:
    for colour in ("white", "black", (200, 100, 50)):
        blank = encode(Image.new("RGB", (300, 300), colour), "JPEG")
        assert reason(blank) == "it has one colour throughout"


@pytest.mark.parametrize("opacity", [0, 255])
def test_an_image_invisible_on_white_is_rejected(opacity: int) -> None:
    image = Image.new("RGBA", (300, 300), (255, 255, 255, 0))
    image.paste((252, 255, 255, opacity), (50, 50, 200, 200))
    assert "it is all white" in reason(encode(image, "PNG"))


def test_a_faint_drawing_is_accepted() -> None:
    drawing = Image.new("L", (300, 300), 250)
    drawing.paste(225, (50, 50, 200, 200))
    facts_of(encode(drawing, "PNG"))


@given(st.binary(max_size=400), st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b""]))
@example(b"", b"")
def test_arbitrary_bytes_are_rejected_and_raise_nothing_else(body: bytes, start: bytes) -> None:
    with pytest.raises(ImageRejected):
        facts_of(start + body)


# --- duplicates --------------------------------------------------------------------------
def distance(one: bytes, other: bytes) -> int:
    return (facts_of(one).perceptual_hash ^ facts_of(other).perceptual_hash).bit_count()


@pytest.mark.parametrize("seed", range(12))
def test_a_rescaled_or_recompressed_copy_is_a_near_duplicate(seed: int) -> None:
    original = scene(seed, (640, 560))
    copies = [
        encode(original.resize((320, 280)), "PNG"),
        encode(original.resize((960, 840)), "PNG"),
        encode(original, "JPEG", quality=40),
        encode(original.resize((448, 392)), "WEBP", quality=60),
    ]
    original_file = encode(original, "PNG")
    assert max(distance(original_file, copy) for copy in copies) <= NEAR_DUPLICATE_BITS


def test_different_scenes_are_seldom_near_duplicates() -> None:
    hashes = [facts_of(encode(scene(seed), "PNG")).perceptual_hash for seed in range(40)]
    pairs = list(combinations(hashes, 2))
    near = sum((a ^ b).bit_count() <= NEAR_DUPLICATE_BITS for a, b in pairs)
    assert near <= len(pairs) // 50


@pytest.mark.parametrize(("slope", "bits"), [(2, 0), (3, 2**64 - 1)])
def test_a_cell_is_brighter_by_more_than_two_grey_levels(slope: int, bits: int) -> None:
    levels = np.tile(100 + slope * np.arange(9, dtype=np.uint8), (8, 1))
    assert difference_hash(Image.fromarray(levels)) == bits
