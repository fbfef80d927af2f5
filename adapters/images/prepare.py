"""An image as it is trained on, and what there is to know about it."""

from __future__ import annotations

import hashlib
from io import BytesIO
from itertools import pairwise

from PIL import Image

from adapters.images.colour import extrema
from adapters.images.decode import load
from adapters.images.opening import OpenedImage
from domain.buckets import bucket_of
from domain.image import MIN_SIDE_PIXELS, ImageFacts, ImageRefused, PreparedImage

BLANK_LEVELS = 8
"""An image whose levels differ by at most this many of 255, in each colour, shows nothing."""


def check_sides(opened: OpenedImage) -> None:
    """Make sure that an image is large enough.

    Raises:
        ImageRefused: it is not.
    """
    width, height = opened.size
    if min(width, height) < MIN_SIDE_PIXELS:
        raise ImageRefused(
            f"it is {width} x {height} pixels, and each side needs at least {MIN_SIDE_PIXELS}"
        )


def prepare(opened: OpenedImage, resolution: int) -> PreparedImage:
    """Decode an image and reduce it to the size that it is trained at.

    Args:
        resolution: side in pixels of the square whose area is the budget of an image.

    Raises:
        ImageRefused: the file is damaged, or shows nothing.
    """
    size = opened.size
    decoded = load(opened, fit=bucket_of(*size, resolution))
    pixels = decoded.pixels
    if all(high - low <= BLANK_LEVELS for low, high in extrema(pixels)):
        if decoded.transparent:
            raise ImageRefused(
                "nothing can be seen of it on white, which is put behind transparent parts; "
                "please export it with a background"
            )
        raise ImageRefused("it has one colour throughout")
    sha256 = hashlib.sha256(f"{pixels.size}\n".encode() + pixels.tobytes()).hexdigest()
    facts = ImageFacts(*size, sha256, difference_hash(pixels), decoded.notes)
    file = BytesIO()
    pixels.save(file, "PNG", compress_level=1)
    return PreparedImage(facts, file.getvalue())


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
