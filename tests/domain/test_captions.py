import codecs

import pytest

from domain.captions import CaptionRejected, read_caption


@pytest.mark.parametrize(
    "data",
    [
        b"a red fox",
        b"  a\tred\r\n fox\r",
        "a red fox".encode("utf-8-sig"),
        codecs.BOM_UTF16_LE + "a red fox\r\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "a red fox".encode("utf-16-be"),
        "a red fox".encode("utf-32"),
    ],
)
def test_text_in_the_usual_encodings_becomes_one_line(data: bytes) -> None:
    assert read_caption(data) == "a red fox"


@pytest.mark.parametrize("data", [b"", b" \r\n", codecs.BOM_UTF8])
def test_a_file_without_text_is_an_empty_caption(data: bytes) -> None:
    assert read_caption(data) == ""


@pytest.mark.parametrize(
    "data",
    ["a red fox".encode("utf-16-le"), "a red fox".encode("utf-16-be"), b"\0" * 100, b"a\0"],
)
def test_utf16_without_a_byte_order_mark_is_rejected(data: bytes) -> None:
    with pytest.raises(CaptionRejected, match="save it as UTF-8"):
        read_caption(data)


@pytest.mark.parametrize("data", ["räd".encode("latin-1"), b"\xff\xfe\xff"])
def test_other_encodings_are_rejected(data: bytes) -> None:
    with pytest.raises(CaptionRejected, match="it is not UTF-8"):
        read_caption(data)
