"""Aspect-ratio buckets: every image keeps its shape, at one budget of pixels.

The idea is NovelAI's ("NovelAI Improvements on Stable Diffusion", 2022): sizes of about the
same area and different shapes, so that nothing is squashed and steps cost about the same.
"""

from __future__ import annotations

import math

MAX_ASPECT_RATIO = 2.5
"""Longest side over shortest; images beyond it are cropped to it. The short side has 320
pixels left at 512: below that a model trained at 512 has little to say."""
MIN_AREA = 0.78
"""Share of the budget that a size has at least: 640 x 320 has it at 512, 512 x 384 has not."""
SMALL_CUT = 0.02
"""Share of an image that is given up for a larger size: a difference in cut up to this counts
as none, so that fewer sizes are used, and larger ones."""
MAX_UPSCALE = 2.0
"""How far an image may be scaled up, per side: more would teach blur as part of the style."""


def bucket_step(resolution: int) -> int:
    """Bucket sides are multiples of this many pixels: 64 at 512 and above, never below 8."""
    return min(64, max(8, resolution // 8 // 8 * 8))


def bucket_of(width: int, height: int, resolution: int) -> tuple[int, int]:
    """The (width, height) in pixels at which an image is trained.

    Sizes have sides that are multiples of the step, are not more elongated than
    ``MAX_ASPECT_RATIO``, and have ``MIN_AREA`` to 1 of the budget: ``resolution ** 2``, or about
    four times the image's own area where that is less. Of those that cut off least of the
    image, within ``SMALL_CUT``, the largest is taken, and of equally large ones the one that
    cuts off less.

    Args:
        resolution: side in pixels of the square that sets the budget.
    """
    step = bucket_step(resolution)
    reachable = int(MAX_UPSCALE * math.sqrt(width * height)) // step * step
    side = max(step, min(resolution, reachable))
    kept = {size: kept_of(width, height, size) for size in _sizes(side, step)}
    enough = max(kept.values()) - SMALL_CUT
    # The last part decides between equals, so that an image on its side gets its bucket turned.
    return max(
        (size for size, share in kept.items() if share >= enough),
        key=lambda size: (size[0] * size[1], kept[size], -max(size)),
    )


def kept_of(width: int, height: int, size: tuple[int, int]) -> float:
    """Share of an image's area that is left when it is scaled to cover ``size`` and cropped."""
    one, other = size[0] * height, size[1] * width
    return min(one, other) / max(one, other)


def cut_off(width: int, height: int, resolution: int) -> float:
    """Share of an image's area that is cut off where it is trained at its bucket's size."""
    return 1 - kept_of(width, height, bucket_of(width, height, resolution))


def _sizes(side: int, step: int) -> list[tuple[int, int]]:
    budget = side**2
    sides = range(step, int(side * math.sqrt(MAX_ASPECT_RATIO)) + 1, step)
    return [
        (one, other)
        for one in sides
        for other in sides
        if MIN_AREA * budget <= one * other <= budget
        and max(one, other) <= MAX_ASPECT_RATIO * min(one, other)
    ]
