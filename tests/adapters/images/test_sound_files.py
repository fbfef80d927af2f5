"""Files with intact pixels are used, even if their metadata is damaged."""

from __future__ import annotations

import zlib

import pytest

from adapters.images.decode import decode, load
from adapters.images.opening import open_image
from domain.image import ImageRejected
from tests.adapters.images.files import (
    CASES,
    animated_webp,
    chunk,
    encode,
    furthest,
    scene,
    with_chunks,
)


def notes(data: bytes) -> tuple[str, ...]:
    return load(open_image(data)).notes


SCENE = encode(scene(), "PNG")
LARGE = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize(
    "text",
    [
        chunk(b"zTXt", b"Comment\0\0" + LARGE),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1000)) * 200),
        chunk(b"tEXt", b"Comment\0" + bytes(2_000_000)),
        chunk(b"pHYs", b""),
        chunk(b"tIME", b"later"),
        chunk(b"gAMA", b""),
        chunk(b"eXIf", b"nonsense"),
    ],
    ids=["zTXt", "iTXt", "long zTXt", "tEXt", "pHYs", "tIME", "gAMA", "eXIf"],
)
def test_unusual_metadata_is_accepted(text: bytes) -> None:
    data = with_chunks(SCENE, text)
    assert furthest(decode(data), scene()) == 0
    assert notes(data) == ()


@pytest.mark.parametrize("case", ["ztxt-1.6MB.png", "iccp-1.2MB.png", "text-badcrc.png"])
def test_valid_files_of_other_programs_are_accepted(case: str) -> None:
    assert decode((CASES / case).read_bytes()).size == (400, 300)


def test_a_large_colour_profile_is_applied() -> None:
    large = decode((CASES / "iccp-1.2MB.png").read_bytes())
    small = decode((CASES / "icc-gimp-linear.png").read_bytes())
    assert furthest(large, small) == 0


def test_a_profile_that_unpacks_to_gigabytes_is_ignored() -> None:
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()
    data = with_chunks(SCENE, chunk(b"iCCP", b"bomb\0\0" + body))
    assert notes(data) == ("its colour profile is damaged and is ignored",)


def test_damaged_png_text_is_reported() -> None:
    text = bytearray(chunk(b"tEXt", b"Comment\0hello"))
    text[-1] ^= 1
    data = with_chunks(SCENE, bytes(text))
    assert furthest(decode(data), scene()) == 0
    assert notes(data) == ("its damaged chunk 'tEXt' is ignored",)


@pytest.mark.parametrize("missing", range(1, 13))
def test_a_png_without_its_end_chunk_is_used(missing: int) -> None:
    data = SCENE[:-missing]
    assert furthest(decode(data), scene()) == 0
    assert notes(data) == ("its end is missing, but its pixels are complete",)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_end_marker_is_used(missing: int, progressive: bool) -> None:
    complete = encode(scene(), "JPEG", progressive=progressive)
    assert furthest(decode(complete[:-missing]), decode(complete)) == 0
    assert notes(complete[:-missing]) == ("its end is missing, but its pixels are complete",)


def test_a_jpeg_of_another_program_without_its_end_marker() -> None:
    data = (CASES / "no-eoi.jpg").read_bytes()
    assert furthest(decode(data), decode(data + b"\xff\xd9")) == 0


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [20, 60, 300])
def test_a_jpeg_truncated_in_its_pixels_is_rejected(missing: int, progressive: bool) -> None:
    complete = encode(scene(), "JPEG", progressive=progressive)
    with pytest.raises(ImageRejected, match="damaged or incomplete"):
        decode(complete[:-missing])


def test_bytes_after_the_end_of_a_jpeg_are_ignored() -> None:
    """Phones append a video to a JPEG file."""
    complete = encode(scene(), "JPEG")
    assert furthest(decode(complete + b"\xff\xda\x00\x02" * 10_000), decode(complete)) == 0


@pytest.mark.parametrize(
    "data",
    [
        encode(scene(), "PNG", save_all=True, append_images=[scene(1)]),
        animated_webp(2),
        encode(scene(), "AVIF", save_all=True, append_images=[scene(1)]),
    ],
    ids=["PNG", "WebP", "AVIF"],
)
def test_the_first_frame_of_an_animation_is_used(data: bytes) -> None:
    assert furthest(decode(data), scene()) <= 60  # AVIF is lossy
    assert notes(data) == ("it is animated; its first frame is used",)


def test_avif_is_read() -> None:
    assert furthest(decode(encode(scene(), "AVIF", quality=95)), scene()) <= 60


def test_heic_is_read_where_the_plugin_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = encode(scene(), "HEIF", quality=95)
    assert furthest(decode(data), scene()) <= 60


def test_any_number_of_damaged_chunks_is_one_note() -> None:
    one = chunk(b"tEXt", b"a")[:-4] + b"none"
    assert notes(with_chunks(SCENE, one, one)) == ("its damaged chunk 'tEXt' is ignored",)
    names = (bytes([97 + n // 26, 97 + n % 26]) for n in range(600))
    many = [chunk(name + b"Xt", b"")[:-4] + b"none" for name in names]
    assert notes(with_chunks(SCENE, *many)) == ("its 600 damaged chunks are ignored",)
