"""Files of another type are rejected with their type."""

from __future__ import annotations

import gzip

import pytest

from adapters.images.decode import decode
from domain.image import ImageRejected
from tests.adapters.images.files import encode, scene

SAVE_AS = "please send it as JPEG, PNG or WebP"
SEND_IT = "please send the image itself"


def reason(data: bytes) -> str:
    with pytest.raises(ImageRejected) as caught:
        decode(data)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (encode(scene(), "GIF"), f"it is a GIF file; {SAVE_AS}"),
        (encode(scene(), "BMP"), f"it is a BMP file; {SAVE_AS}"),
        (encode(scene(), "TIFF"), f"it is a TIFF or camera raw file; {SAVE_AS}"),
        (b"8BPS\x00\x01", f"it is a Photoshop file; {SAVE_AS}"),
        (b"%PDF-1.7", f"it is a PDF file; {SAVE_AS}"),
        (b"<svg xmlns=''/>", f"it is an SVG file; {SAVE_AS}"),
        (b"<?xml version='1.0'?>\n<svg>", f"it is an SVG file; {SAVE_AS}"),
        (
            b"\x00\x00\x00\x14ftypqt  \x00\x00\x00\x00qt  ",
            f"it is a video (MOV, MP4 or WebM); {SAVE_AS}",
        ),
        (
            b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00isommp42",
            f"it is a video (MOV, MP4 or WebM); {SAVE_AS}",
        ),
        (b"\x00\x00\x00\x08wide\x00\x01mdat", f"it is a video (MOV, MP4 or WebM); {SAVE_AS}"),
        (gzip.compress(encode(scene(), "PNG")), f"it is a gzip archive; {SEND_IT}"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            f"it is a Git LFS pointer and not the image; {SEND_IT}",
        ),
        (
            b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
            f"it is an error page of the storage; {SEND_IT}",
        ),
        (b"\n<!DOCTYPE html><html>", f"it is a web page; {SEND_IT}"),
        (b"\xef\xbb\xbf<HTML>", f"it is a web page; {SEND_IT}"),
        (b"", "the file is empty"),
        (b"hello", f"it is not an image of a supported format; {SAVE_AS}"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", f"it is not an image of a supported format; {SAVE_AS}"),
        (b"\x00" * 300, f"it is not an image of a supported format; {SAVE_AS}"),
    ],
)
def test_another_file_is_rejected_by_its_name(data: bytes, text: str) -> None:
    assert reason(data) == text


@pytest.mark.parametrize("brands", [b"heic....mif1heic", b"mif1....mif1heic", b"msf1....msf1hevc"])
def test_heic_without_the_plugin_is_rejected_by_its_name(
    brands: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    assert reason(b"\x00\x00\x00\x18ftyp" + brands) == f"it is a HEIC file; {SAVE_AS}"


def test_avif_that_this_pillow_cannot_read_is_rejected_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "adapters.images.opening.features.check", lambda feature: feature != "avif"
    )
    assert reason(encode(scene(), "AVIF")) == f"it is an AVIF file; {SAVE_AS}"


def test_an_avif_image_may_have_the_generic_brand() -> None:
    data = encode(scene(), "AVIF")
    assert data[4:12] == b"ftypavif"
    assert decode(data[:8] + b"mif1" + data[12:]).size == scene().size
