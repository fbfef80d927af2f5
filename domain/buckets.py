"""Aspect-ratio buckets: every picture keeps its shape, at one budget of pixels.

The idea is NovelAI's ("NovelAI Improvements on Stable Diffusion", 2022): sizes of about the
same area and different shapes, so that nothing is squashed and steps cost about the same.
"""

from __future__ import annotations

import math

MOST_ELONGATED = 2.5
"""Longest side over shortest; pictures beyond it are cropped to it. The short side has 320
pixels left at 512: below that a model trained at 512 has little to say."""
LEAST_AREA = 0.78
"""Share of the budget that a size has at least: 640 x 320 has it at 512, 512 x 384 has not."""
SMALL_CUT = 0.02
"""Share of a picture that is given up for a larger size: a difference in cut up to this counts
as none, so that fewer sizes are used, and larger ones."""
MOST_ENLARGED = 2.0
"""How far a picture may be scaled up, per side: more would teach blur as part of the style."""


def bucket_step(resolution: int) -> int:
    """Bucket sides are multiples of this many pixels: 64 at 512 and above, never below 8."""
    return min(64, max(8, resolution // 8 // 8 * 8))


def bucket_of(width: int, height: int, resolution: int) -> tuple[int, int]:
    """The (width, height) in pixels at which a picture is trained.

    Sizes have sides that are multiples of the step, are not more elongated than
    ``MOST_ELONGATED``, and have ``LEAST_AREA`` to 1 of the budget: ``resolution ** 2``, or about
    four times the picture's own area where that is less. Of those that cut off least of the
    picture, within ``SMALL_CUT``, the largest is taken, and of equally large ones the one that
    cuts off less.

    Args:
        resolution: side in pixels of the square that sets the budget.
    """
    step = bucket_step(resolution)
    reachable = int(MOST_ENLARGED * math.sqrt(width * height)) // step * step
    side = max(step, min(resolution, reachable))
    kept = {size: kept_of(width, height, size) for size in _sizes(side, step)}
    enough = max(kept.values()) - SMALL_CUT
    # The last part decides between equals, so that a picture on its side gets its bucket turned.
    return max(
        (size for size, share in kept.items() if share >= enough),
        key=lambda size: (size[0] * size[1], kept[size], -max(size)),
    )


def kept_of(width: int, height: int, size: tuple[int, int]) -> float:
    """Share of a picture's area that is left when it is scaled to cover ``size`` and cropped."""
    one, other = size[0] * height, size[1] * width
    return min(one, other) / max(one, other)


def _sizes(side: int, step: int) -> list[tuple[int, int]]:
    budget = side**2
    sides = range(step, int(side * math.sqrt(MOST_ELONGATED)) + 1, step)
    return [
        (one, other)
        for one in sides
        for other in sides
        if LEAST_AREA * budget <= one * other <= budget
        and max(one, other) <= MOST_ELONGATED * min(one, other)
    ]
