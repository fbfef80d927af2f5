import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngImageFile

from adapters import pillow
from adapters.pillow import PillowInspector, decode, difference_hash
from assets.drawing import draw_scene
from domain.image import (
    MAX_IMAGE_BYTES,
    MIN_SIDE_PIXELS,
    NEAR_DUPLICATE_BITS,
    ImageRefused,
)

SIZE = (320, 288)
inspect = PillowInspector().inspect


def scene(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    return draw_scene(np.random.default_rng(seed), size)[0]


def encode(original: Image.Image, format: str, **options: Any) -> bytes:
    file = BytesIO()
    original.save(file, format, **options)
    return file.getvalue()


def reason(data: bytes) -> str:
    with pytest.raises(ImageRefused) as caught:
        inspect(data)
    return str(caught.value)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def webp_that_claims(width: int, height: int) -> bytes:
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    vp8x = b"VP8X" + struct.pack("<I", 10) + b"\x02\x00\x00\x00" + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x


def furthest(a: Image.Image, b: Image.Image) -> int:
    """The largest difference between two images, in grey levels."""
    assert a.size == b.size
    assert a.mode == b.mode == "RGB"
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


# --- what is accepted --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100, "subsampling": 0})],
)
def test_each_format_comes_out_as_it_went_in(format: str, options: dict[str, Any]) -> None:
    decoded = decode(encode(scene(), format, **options))
    assert furthest(decoded, scene()) <= (8 if format == "JPEG" else 0)


def test_facts_are_of_the_pixels_and_not_of_the_file() -> None:
    facts = inspect(encode(scene(), "PNG"))
    assert (facts.width, facts.height) == SIZE
    assert facts == inspect(encode(scene(), "WEBP", lossless=True))
    assert facts.sha256 != inspect(encode(scene(1), "PNG")).sha256
    assert 0 <= facts.perceptual_hash < 2**64


def test_the_same_bytes_in_another_shape_are_another_image() -> None:
    wide = Image.new("RGB", (512, 256), "teal")
    assert (
        inspect(encode(wide, "PNG")).sha256
        != inspect(encode(wide.transpose(Image.Transpose.ROTATE_90), "PNG")).sha256
    )


UNDO = {
    1: lambda original: original,
    2: lambda original: original.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda original: original.transpose(Image.Transpose.ROTATE_180),
    4: lambda original: original.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda original: original.transpose(Image.Transpose.TRANSPOSE),
    6: lambda original: original.transpose(Image.Transpose.ROTATE_90),
    7: lambda original: original.transpose(Image.Transpose.TRANSVERSE),
    8: lambda original: original.transpose(Image.Transpose.ROTATE_270),
}
"""How a camera that was held so stores an upright scene."""


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_every_exif_orientation_is_set_upright(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    stored: Callable[[Image.Image], Image.Image] = UNDO[orientation]
    data = encode(stored(scene()), format, exif=exif, quality=95, **options)
    decoded = decode(data)
    assert decoded.size == SIZE
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(scene())).mean() < 2
    facts = inspect(data)
    assert (facts.width, facts.height) == SIZE


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif",
    [b"MM\x00*\x00\x00\xff\xff" + bytes(20), b"MM\x00*\x00\x00", b"MM\x0f*\x00\x00\x00"],
    ids=["leads nowhere", "cut short", "no header"],
)
def test_unreadable_exif_does_not_matter(exif: bytes) -> None:
    data = encode(scene(), "PNG", exif=b"Exif\x00\x00" + exif)
    assert furthest(decode(data), scene()) == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_lie_on_white(mode: str) -> None:
    original = scene().convert(mode)
    ramp = np.tile(np.linspace(0, 255, SIZE[0]).round().astype(np.uint8), (SIZE[1], 1))
    original.putalpha(Image.fromarray(ramp))
    share = ramp[..., None] / 255
    colours = np.asarray(original.convert("RGB")).astype(float)
    expected = colours * share + 255 * (1 - share)
    decoded = np.asarray(decode(encode(original, "PNG"))).astype(float)
    assert np.abs(decoded - expected).max() <= 1.01


def test_transparent_webp_lies_on_white() -> None:
    original = Image.new("RGBA", (300, 300), (10, 20, 30, 0))
    assert decode(encode(original, "WEBP", lossless=True)).getcolors() == [(90_000, (255,) * 3)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_a_transparent_palette_entry_lies_on_white(transparency: int | bytes) -> None:
    original = Image.new("P", (300, 300), 1)
    original.putpalette([200, 0, 0, 0, 0, 200])
    original.paste(0, (0, 0, 150, 300))
    decoded = decode(encode(original, "PNG", transparency=transparency))
    assert decoded.getpixel((10, 10)) == (255, 255, 255)
    assert decoded.getpixel((290, 10)) == (0, 0, 200)


def test_a_plain_palette_keeps_its_colours() -> None:
    reduced = scene().quantize(32)
    assert furthest(decode(encode(reduced, "PNG")), reduced.convert("RGB")) == 0


def test_a_transparent_grey_level_lies_on_white() -> None:
    original = Image.new("L", (300, 300), 80)
    original.paste(20, (0, 0, 150, 300))
    decoded = decode(encode(original, "PNG", transparency=20))
    assert decoded.getpixel((10, 10)) == (255, 255, 255)
    assert decoded.getpixel((290, 10)) == (80, 80, 80)


@pytest.mark.parametrize(("mode", "format"), [("L", "PNG"), ("L", "JPEG"), ("1", "PNG")])
def test_greyscale_becomes_rgb(mode: str, format: str) -> None:
    grey = scene().convert(mode)
    decoded = decode(encode(grey, format, quality=100))
    assert furthest(decoded, grey.convert("RGB")) <= 8


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 300).round().astype(np.uint16)
    original = Image.fromarray(np.tile(ramp, (256, 1)))
    assert original.mode == "I;16"
    decoded = np.asarray(decode(encode(original, "PNG")))
    assert decoded.shape == (256, 300, 3)
    assert np.abs(decoded[0, :, 0].astype(float) - ramp / 257).max() < 1
    assert (decoded == decoded[:, :, :1]).all()


def test_sixteen_bits_of_colour_are_scaled_too() -> None:
    row = b"\x00" + struct.pack(">HHH", 65535, 32768, 300) * 256
    header = struct.pack(">IIBBBBB", 256, 256, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row * 256)), chunk(b"IEND", b""))
    decoded = decode(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert decoded.getpixel((100, 100)) == (255, 128, 1)


def test_cmyk_becomes_rgb() -> None:
    decoded = decode(encode(scene().convert("CMYK"), "JPEG", quality=100, subsampling=0))
    assert furthest(decoded, scene()) <= 12


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(format: str) -> None:
    frames = [scene(seed).resize((256, 256)) for seed in range(3)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]  # of some formats
    assert furthest(decode(data), frames[0]) == 0


def test_a_colour_profile_is_applied() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile whose red and blue primaries are exchanged shows red where blue is stored.
    red, blue = lab.index(b"rXYZ"), lab.index(b"bXYZ")
    swapped = bytearray(lab)
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    name = "sRGB".encode("utf-16-be")
    profile = bytes(swapped).replace(name, "odd!".encode("utf-16-be"))
    for mode in ("RGB", "RGBA", "P"):
        original = Image.new("RGB", (256, 256), "blue").convert(mode)
        red_level, _, blue_level = decode(encode(original, "PNG", icc_profile=profile)).getpixel(
            (0, 0)
        )  # type: ignore[misc]  # three numbers, as the mode is RGB
        assert red_level > 250
        assert blue_level < 5


def grey_profile() -> bytes:
    """Of a scanner that tells light itself and not, as is usual, its perceived brightness."""
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
    original = Image.fromarray(levels if mode == "I;16" else levels.astype(np.uint8))
    original = original if original.mode == mode else original.convert(mode)
    decoded = decode(encode(original, "PNG", icc_profile=grey_profile(), **options))
    assert decoded.getcolors() == [(256 * 256, (188, 188, 188))]


def test_an_image_that_is_said_to_be_in_srgb_is_left_as_it_is() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert furthest(decode(encode(scene(), "PNG", icc_profile=profile)), scene()) == 0


@pytest.mark.parametrize("profile", [b"nonsense", bytes(200)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_a_broken_colour_profile_is_ignored(profile: bytes, mode: str) -> None:
    original = scene().convert(mode)
    decoded = decode(encode(original, "PNG", icc_profile=profile))
    assert furthest(decoded, original.convert("RGB")) == 0


def test_a_profile_for_other_channels_is_ignored() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert furthest(decode(encode(scene(), "PNG", icc_profile=profile)), scene()) == 0


# --- what is refused ---------------------------------------------------------------------


def test_an_empty_file_is_refused() -> None:
    assert reason(b"") == "the file is empty"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encode(scene(), "GIF"), "a GIF file"),
        (
            encode(scene(), "GIF", save_all=True, append_images=[scene(1)]),
            "a GIF file",
        ),
        (encode(scene(), "BMP"), "a BMP file"),
        (encode(scene(), "TIFF"), "a TIFF or camera raw file"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "a HEIC file"),
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00", "an AVIF file"),
        (b"8BPS\x00\x01", "a Photoshop file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"<svg xmlns=''/>", "an SVG file"),
    ],
)
def test_another_format_is_refused_by_its_name(data: bytes, kind: str) -> None:
    assert reason(data) == f"it is {kind}; please send it as JPEG, PNG or WebP"


@pytest.mark.parametrize("data", [b"hello", b"RIFF\x00\x00\x00\x00WAVEfmt ", b"\x00" * 300])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert reason(data) == "it is not a JPEG, PNG or WebP image"


@pytest.mark.parametrize("percent", [1, 3, 10, 25, 50, 75, 90, 97, 99])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_file_is_refused(format: str, percent: int) -> None:
    whole = encode(scene(), format)
    cut = whole[: max(12, len(whole) * percent // 100)]
    assert "damaged or incomplete" in reason(cut)


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_a_truncated_progressive_jpeg_is_refused(percent: int) -> None:
    whole = encode(scene(), "JPEG", progressive=True)
    assert "damaged or incomplete" in reason(whole[: len(whole) * percent // 100])


@pytest.mark.parametrize("percent", [30, 60, 90])
def test_a_png_with_altered_pixels_is_refused(percent: int) -> None:
    data = bytearray(encode(scene(), "PNG"))
    data[len(data) * percent // 100] ^= 0xFF
    assert "damaged or incomplete" in reason(bytes(data))


@pytest.mark.parametrize("size", [(255, 600), (600, 255), (1, 1)])
def test_a_small_image_is_refused_with_its_size(size: tuple[int, int]) -> None:
    text = reason(encode(Image.new("RGB", size), "PNG"))
    assert text == f"it is {size[0]} x {size[1]} pixels, and each side needs at least 256"


def test_an_image_of_just_the_smallest_size_is_accepted() -> None:
    facts = inspect(encode(Image.new("RGB", (MIN_SIDE_PIXELS, MIN_SIDE_PIXELS)), "PNG"))
    assert (facts.width, facts.height) == (MIN_SIDE_PIXELS, MIN_SIDE_PIXELS)


def test_a_heavy_file_is_refused_with_its_weight() -> None:
    decoded = encode(scene(), "JPEG")
    heavy = decoded + bytes(MAX_IMAGE_BYTES + 512 * 1024 - len(decoded))
    assert reason(heavy) == "the file has 10.5 MB, and at most 10 MB are accepted"
    # What follows the image's end is of no account, so this one is just light enough.
    inspect(heavy[:MAX_IMAGE_BYTES])


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
def test_a_decompression_bomb_is_refused_before_it_is_decoded(data: bytes, measured: str) -> None:
    text = reason(data)
    assert measured in text
    assert "100 million" in text


def test_an_image_of_just_the_largest_area_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow, "MAX_MEGAPIXELS", 1)
    assert decode(encode(Image.new("RGB", (1000, 1000)), "PNG")).size == (1000, 1000)
    assert "1 million in all" in reason(encode(Image.new("RGB", (1001, 1000)), "PNG"))


def test_a_machine_without_memory_is_no_fault_of_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(MemoryError):
        inspect(encode(scene(), "PNG"))


# --- whatever comes ----------------------------------------------------------------------

WHOLE = [encode(scene(size=(64, 64)), format) for format in ("JPEG", "PNG", "WEBP")]


@given(st.binary(max_size=400), st.sampled_from([b"", *(data[:16] for data in WHOLE)]))
@example(b"", b"\xff\xd8\xff")
def test_arbitrary_bytes_are_refused_and_raise_nothing_else(body: bytes, start: bytes) -> None:
    with pytest.raises(ImageRefused):
        inspect(start + body)


@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
)
def test_a_file_with_altered_bytes_is_decoded_or_refused(
    whole: bytes, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(whole)
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        mode = decode(bytes(data)).mode
    except ImageRefused:
        return
    assert mode == "RGB"


def test_many_threads_may_share_an_inspector() -> None:
    files = [encode(scene(seed), "JPEG") for seed in range(4)] * 3
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(inspect, files)) == [inspect(data) for data in files]


# --- duplicates --------------------------------------------------------------------------


def distance(one: bytes, other: bytes) -> int:
    return (inspect(one).perceptual_hash ^ inspect(other).perceptual_hash).bit_count()


@pytest.mark.parametrize("seed", range(12))
def test_a_rescaled_or_recompressed_copy_is_a_near_duplicate(seed: int) -> None:
    original = scene(seed, (640, 560))
    copies = [
        encode(original.resize((320, 280)), "PNG"),
        encode(original.resize((960, 840)), "PNG"),
        encode(original, "JPEG", quality=40),
        encode(original.resize((448, 392)), "WEBP", quality=60),
    ]
    whole = encode(original, "PNG")
    assert max(distance(whole, copy) for copy in copies) <= NEAR_DUPLICATE_BITS


def test_different_scenes_are_seldom_near_duplicates() -> None:
    hashes = [inspect(encode(scene(seed), "PNG")).perceptual_hash for seed in range(40)]
    pairs = list(combinations(hashes, 2))
    near = sum((a ^ b).bit_count() <= NEAR_DUPLICATE_BITS for a, b in pairs)
    assert near <= len(pairs) // 50


@pytest.mark.parametrize(("slope", "bits"), [(2, 0), (3, 2**64 - 1)])
def test_a_cell_is_brighter_by_more_than_two_grey_levels(slope: int, bits: int) -> None:
    levels = np.tile(100 + slope * np.arange(9, dtype=np.uint8), (8, 1))
    assert difference_hash(Image.fromarray(levels)) == bits
