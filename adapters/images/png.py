"""Reduce a PNG file to the chunks that its pixels need."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PROFILE_BYTES = 8 * 1024**2
"""Maximum bytes of an unpacked colour profile; printers' profiles have up to 3 MB."""

_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT"}
"""Chunks that affect the pixels."""
_HAVE_TRANSPARENT_COLOUR = (0, 2)
"""Colour types, grey and RGB, of which ``tRNS`` holds a colour. A palette's has alpha levels."""
_ANCILLARY = 0x20
"""Bit of a chunk's first letter: lower case marks chunks that a decoder may skip."""


@dataclass(frozen=True)
class ReducedPng:
    """The same pixels in a file without texts, times and further frames."""

    data: bytes
    icc_profile: bytes | None
    notes: tuple[str, ...]
    """Warnings for the artist about dropped parts."""


def reduce_png(data: bytes) -> ReducedPng:
    """Keep the pixels' chunks and the EXIF data; extract the colour profile.

    Skips text chunks of any size, damaged or not, and all frames of an animation but the
    default image.

    Raises:
        ValueError: a chunk that the pixels need is damaged, truncated or unknown.
    """
    profile, exif, ended = None, b"", False
    kept: list[bytes] = []
    damaged: list[str] = []
    notes: dict[str, None] = {}
    for name, body, whole in _chunks(data):
        if name == b"IEND":
            ended = whole
        elif name in _PIXELS:
            if not whole:
                raise ValueError(f"the PNG chunk {name!r} is damaged")
            body = _transparent(body, kept[0]) if name == b"tRNS" and kept else body
            kept.append(_chunk(name, body))
        elif not name[0] & _ANCILLARY:
            raise ValueError(f"the PNG chunk {name!r} is unknown")
        elif not whole:
            damaged.append(name.decode("latin-1"))
        elif name == b"iCCP":
            profile = _unpack_profile(body)
            if profile is None:
                notes["its colour profile is damaged and is ignored"] = None
        elif name == b"acTL":
            notes["it is animated; its first frame is used"] = None
        elif name == b"eXIf":
            exif = _chunk(name, body)
    if len(set(damaged)) == 1:
        notes[f"its damaged chunk {damaged[0]!r} is ignored"] = None
    elif damaged:
        notes[f"its {len(damaged):,} damaged chunks are ignored"] = None
    if not ended:
        notes["its end is missing, but its pixels are complete"] = None
    header, *others = kept
    # EXIF data goes before the pixels, so that a decoder finds it without decoding them.
    reduced = b"".join((SIGNATURE, header, exif, *others, _chunk(b"IEND", b"")))
    return ReducedPng(reduced, profile, tuple(notes))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Name and body of each chunk, and whether its checksum matches."""
    position = len(SIGNATURE)
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        body = data[position + 8 : end]
        checksum = struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))
        yield name, body, data[end : end + 4] == checksum
        if name == b"IEND":
            return
        position = end + 4


def _chunk(name: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(body, zlib.crc32(name))
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def _transparent(body: bytes, header: bytes) -> bytes:
    """The transparent colour of a ``tRNS`` chunk with levels as Pillow decodes them: of 8 bits.

    Pillow compares the file's own levels. Of 16 bits the higher 8 are compared.
    """
    depth, colour_type = header[16:18]
    if colour_type not in _HAVE_TRANSPARENT_COLOUR or depth in (1, 8):
        return body
    levels = struct.unpack(f">{len(body) // 2}H", body)
    scaled = (v >> 8 if depth == 16 else v * 255 // (2**depth - 1) for v in levels)
    return struct.pack(f">{len(levels)}H", *scaled)


def _unpack_profile(body: bytes) -> bytes | None:
    """The ICC profile of an ``iCCP`` chunk: name, zero byte, method, compressed bytes."""
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(body[body.index(b"\0") + 2 :], MAX_PROFILE_BYTES)
    except (ValueError, zlib.error):
        return None
    return profile if unpacker.eof else None
