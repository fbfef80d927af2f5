"""Images as artists send them: checked, set upright and brought to RGB, with Pillow."""

from __future__ import annotations

import hashlib
from io import BytesIO
from itertools import pairwise

from PIL import Image, ImageCms, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from domain.image import MAX_IMAGE_BYTES, MIN_SIDE_PIXELS, ImageFacts, ImageRefused

MAX_MEGAPIXELS = 100
"""A scan of an A2 sheet at 400 dpi has 62. Decoded, an image of 100 takes 300 MB, and a
worker decodes several at a time; a file of a few kilobytes may claim a hundred times that."""

_OTHER_KINDS = (
    (0, b"GIF8", "a GIF file"),
    (0, b"BM", "a BMP file"),
    (0, b"II*\x00", "a TIFF or camera raw file"),
    (0, b"MM\x00*", "a TIFF or camera raw file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"\xff\x0a", "a JPEG XL file"),
    (4, b"JXL ", "a JPEG XL file"),
    (4, b"jP  ", "a JPEG 2000 file"),
    (4, b"ftypavi", "an AVIF file"),
    (4, b"ftyphe", "a HEIC file"),
    (4, b"ftypmif1", "a HEIC file"),
    (0, b"<svg", "an SVG file"),
    (0, b"<?xml", "an XML or SVG file"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
)
"""Offset and first bytes of what people send by mistake, to tell them what it is."""


class PillowInspector:
    """Port ``ImageInspector``. Has no state: any number of threads may share it."""

    def inspect(self, data: bytes) -> ImageFacts:
        """Decode a JPEG, PNG or WebP file fully and describe it.

        Raises:
            ImageRefused: with the reason, in words for the artist.
        """
        if len(data) > MAX_IMAGE_BYTES:
            raise ImageRefused(
                f"the file has {len(data) / 1024**2:.1f} MB, "
                f"and at most {MAX_IMAGE_BYTES // 1024**2} MB are accepted"
            )
        image = decode(data)
        width, height = image.size
        if min(width, height) < MIN_SIDE_PIXELS:
            raise ImageRefused(
                f"it is {width} x {height} pixels, and each side needs at least {MIN_SIDE_PIXELS}"
            )
        return ImageFacts(width, height, _sha256(image), difference_hash(image))


def decode(data: bytes) -> Image.Image:
    """The image in a JPEG, PNG or WebP file: RGB, 8 bits, upright, in sRGB.

    Transparent parts lie on white. Of an animation this is the first frame. A colour profile
    that cannot be applied is ignored.

    Raises:
        ImageRefused: the file is empty, of another kind, damaged, or too large once decoded.
    """
    try:
        image = _open(data)
        _check_area(image)
        # Decoding alone does not look at a PNG's checksums, and would take altered pixels.
        _open(data).verify()
        image.load()
    except (ImageRefused, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageRefused(
            f"it has far more than the {MAX_MEGAPIXELS} million pixels that are accepted"
        ) from None
    except Exception:
        # Pillow documents no set of errors for damaged files, and raises about a dozen.
        raise ImageRefused(
            "the file is damaged or incomplete; please export or upload it again"
        ) from None
    _turn_upright(image)
    return _on_white(image)


def difference_hash(image: Image.Image) -> int:
    """64 bits that say, on a grid of 9 x 8 grey cells, where a cell is brighter than its left
    neighbour.

    N. Krawetz, "Kind of Like That", hackerfactor.com, 2013. Unlike there, brighter means by
    more than two grey levels: on plain paper the sign of a smaller difference is chance.
    """
    grey = image.convert("L").resize((9, 8), Image.Resampling.LANCZOS).tobytes()
    rows = (grey[start : start + 9] for start in range(0, 72, 9))
    bits = (right > left + 2 for row in rows for left, right in pairwise(row))
    return sum(bit << place for place, bit in enumerate(bits))


def _open(data: bytes) -> ImageFile:
    """Read the header with the one decoder that fits the first bytes.

    Not by ``Image.open``: it tries formats that nobody needs, and its own limit on pixels is
    a warning, which threads cannot handle each for itself.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile(BytesIO(data))
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(BytesIO(data))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile(BytesIO(data))
    if not data:
        raise ImageRefused("the file is empty")
    for offset, signature, kind in _OTHER_KINDS:
        if data.startswith(signature, offset):
            raise ImageRefused(f"it is {kind}; please send it as JPEG, PNG or WebP")
    raise ImageRefused("it is not a JPEG, PNG or WebP image")


def _check_area(image: Image.Image) -> None:
    area = image.width * image.height
    if area > MAX_MEGAPIXELS * 1_000_000:
        raise ImageRefused(
            f"it is {image.width:,} x {image.height:,} pixels, {area / 1e6:,.0f} million in "
            f"all, and at most {MAX_MEGAPIXELS} million are accepted"
        )


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:
        # The pixels are whole; EXIF data that cannot be read is no reason to refuse them,
        # and Pillow raises as many kinds of errors over it as over damaged files.
        return


def _on_white(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode == "I;16":
        # The high byte, as Pillow itself reads colours of 16 bits; its conversion would clip.
        grey = image.point(lambda value: value / 256).convert("L")
        return _to_srgb(grey, profile)
    if not image.has_transparency_data:
        return _to_srgb(image, profile)
    layered = image.convert("RGBA")
    # A profile is of grey or of colours, as the image is.
    opaque = image.convert("L") if image.mode in {"L", "LA"} else layered.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(_to_srgb(opaque, profile), mask=layered.getchannel("A"))
    return white


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode == "P":
        image = image.convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
                assert converted is not None  # it is None only for a conversion in place
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass
    return image.convert("RGB")


def _sha256(image: Image.Image) -> str:
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height}\n".encode())
    # In strips: the bytes of a large image at once would be a second copy of it.
    for top in range(0, image.height, 256):
        strip = image.crop((0, top, image.width, min(top + 256, image.height)))
        digest.update(strip.tobytes())
    return digest.hexdigest()
