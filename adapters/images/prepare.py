"""Prepare an image for training, and collect its facts."""

from __future__ import annotations

import hashlib
from io import BytesIO
from itertools import pairwise

from PIL import Image

from adapters.images.colour import extrema
from adapters.images.decode import load
from adapters.images.opening import OpenedImage
from domain.buckets import bucket_of
from domain.image import MIN_SIDE_PIXELS, ImageFacts, ImageRejected, PreparedImage

BLANK_LEVELS = 8
"""An image counts as blank if each channel's levels differ by at most this many of 255."""


def check_sides(opened: OpenedImage) -> None:
    """Make sure that an image is large enough.

    Raises:
        ImageRejected: it is too small.
    """
    width, height = opened.size
    if min(width, height) < MIN_SIDE_PIXELS:
        raise ImageRejected(
            f"it is {width} x {height} pixels, and each side needs at least {MIN_SIDE_PIXELS}"
        )


def prepare(opened: OpenedImage, resolution: int) -> PreparedImage:
    """Decode an image and scale it down to its training size.

    Args:
        resolution: side in pixels of a square; its area is an image's pixel budget.

    Raises:
        ImageRejected: the file is damaged or blank.
    """
    size = opened.size
    decoded = load(opened, fit=bucket_of(*size, resolution))
    pixels = decoded.pixels
    if all(high - low <= BLANK_LEVELS for low, high in extrema(pixels)):
        if decoded.transparent:
            raise ImageRejected(
                "it is all white once a white background replaces its transparency; "
                "please export it with a background"
            )
        raise ImageRejected("it has one colour throughout")
    sha256 = hashlib.sha256(f"{pixels.size}\n".encode() + pixels.tobytes()).hexdigest()
    facts = ImageFacts(*size, sha256, difference_hash(pixels), decoded.notes)
    file = BytesIO()
    pixels.save(file, "PNG", compress_level=1)
    return PreparedImage(facts, file.getvalue())


def difference_hash(image: Image.Image) -> int:
    """64-bit dHash: for a grid of 9 x 8 grey cells, whether each is brighter than its left
    neighbour.

    N. Krawetz, "Kind of Like That", hackerfactor.com, 2013. Unlike there, brighter means by
    more than two grey levels: on plain paper smaller differences are noise.
    """
    grey = image.convert("L").resize((9, 8), Image.Resampling.LANCZOS).tobytes()
    rows = (grey[start : start + 9] for start in range(0, 72, 9))
    bits = (right > left + 2 for row in rows for left, right in pairwise(row))
    return sum(bit << place for place, bit in enumerate(bits))
