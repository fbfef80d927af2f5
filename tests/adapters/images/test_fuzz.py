"""Any bytes are decoded or rejected."""

from __future__ import annotations

import random
import warnings

import pytest

from adapters.images.opening import open_image
from adapters.images.prepare import prepare
from domain.image import ImageRejected
from tests.adapters.images.files import animated_webp, encode, scene, srgb_profile

FILES = 3000
"""Number of files for each format."""

SMALL = (96, 64)
WHOLE = {
    "JPEG": [
        encode(
            scene(size=SMALL),
            "JPEG",
            icc_profile=srgb_profile(),
            exif=b"Exif\0\0MM\0*" + bytes(20),
        ),
        encode(scene(size=SMALL), "JPEG", progressive=True),
        encode(scene(size=SMALL).convert("CMYK"), "JPEG"),
    ],
    "PNG": [
        encode(scene(size=SMALL), "PNG", icc_profile=srgb_profile()),
        encode(scene(size=SMALL).quantize(16), "PNG", transparency=3),
        encode(scene(size=SMALL).convert("LA"), "PNG"),
    ],
    "WebP": [
        encode(scene(size=SMALL), "WEBP", icc_profile=srgb_profile()),
        encode(scene(size=SMALL).convert("RGBA"), "WEBP", lossless=True),
        animated_webp(3, SMALL),
    ],
}


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The file with a few bytes changed, a part cut out or doubled, or its end missing."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        # Most of what can go wrong stands in the headers.
        place = int(len(changed) * chance.random() ** chance.choice([1, 3]))
        match chance.randrange(6):
            case 0 | 1 | 2:
                changed[place : place + 1] = bytes([chance.randrange(256)])
            case 3:
                changed[place : place + 4] = chance.choice([b"\0\0\0\0", b"\xff" * 4, b"\x7f\xff"])
            case 4:
                part = changed[place : place + chance.randrange(1, 64)]
                changed[place:place] = part
            case 5:
                del changed[place : place + chance.randrange(1, 64)]
    return bytes(changed[: len(changed) if chance.random() < 0.8 else chance.randrange(1, 4000)])


@pytest.mark.parametrize("format", WHOLE)
def test_mutated_files_are_prepared_or_rejected(format: str) -> None:
    warnings.simplefilter("ignore")
    outcomes = {"prepared": 0, "rejected": 0}
    for seed in range(FILES):
        chance = random.Random(seed)
        data = mutated(chance.choice(WHOLE[format]), chance)
        try:
            prepared = prepare(open_image(data), 64)
            assert prepared.facts.width > 0
            outcomes["prepared"] += 1
        except ImageRejected:
            outcomes["rejected"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed} of {format}") from error
    assert min(outcomes.values()) > 20, outcomes
