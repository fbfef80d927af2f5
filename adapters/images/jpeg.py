"""Read a JPEG file's markers without decoding it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil

END = b"\xff\xd9"

# 00 after 0xff is an escaped data byte, D0 to D7 restart a scan, 01 and D8 have no segment.
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}


@dataclass(frozen=True)
class JpegStructure:
    """The scans of a JPEG file and the memory for decoding them."""

    scans: int
    coefficient_bytes: int
    """Bytes that the decoder holds until the last scan is read; 0 if it decodes row by row."""
    has_end: bool


def read_structure(data: bytes) -> JpegStructure:
    """Walk the markers of a JPEG file, ITU-T T.81, annex B.

    Skips damaged parts; the decoder reports them.
    """
    position, scans, samples, progressive = 2, 0, 0, False
    while marker := _MARKER.search(data, position):
        kind, position = marker[1][0], marker.end()
        if kind == _END_OF_IMAGE:
            return JpegStructure(scans, _held(samples, scans, progressive), True)
        if kind == _START_OF_SCAN:
            scans += 1
        elif kind in _FRAMES:
            progressive = kind in _PROGRESSIVE
            samples = _samples(data[position : position + 264])
        position += int.from_bytes(data[position : position + 2], "big")
    return JpegStructure(scans, _held(samples, scans, progressive), False)


def _held(samples: int, scans: int, progressive: bool) -> int:
    return 2 * samples if progressive or scans > 1 else 0


def _samples(frame: bytes) -> int:
    """Samples of all components, subsampled ones included."""
    if len(frame) < 8 or len(frame) < 8 + 3 * frame[7]:
        return 0
    area = int.from_bytes(frame[3:5], "big") * int.from_bytes(frame[5:7], "big")
    factors = [frame[8 + 3 * n + 1] for n in range(frame[7])]
    shares = [(factor >> 4) * (factor & 15) for factor in factors]
    highest = max((factor >> 4 for factor in factors), default=1) * max(
        (factor & 15 for factor in factors), default=1
    )
    return ceil(area * sum(shares) / highest) if highest else 0
