"""Aspect-ratio buckets: images keep their shape at about equal numbers of pixels.

As in "NovelAI Improvements on Stable Diffusion" (2022): bucket sizes differ in shape but have
about the same area, so that images are not distorted and steps cost about the same.
"""

from __future__ import annotations

import math

MAX_ASPECT_RATIO = 2.5
"""Largest ratio of long to short side; longer images are cropped. At 512 the short side is then
320 pixels; a model trained at 512 works poorly below that."""
MIN_AREA = 0.78
"""Smallest area of a size as a share of the budget: at 512, 640 x 320 fits and 512 x 384 does
not."""
SMALL_CUT = 0.02
"""Sizes whose cropped shares of an image differ by at most this count as equal; the largest of
them is chosen, so that fewer and larger sizes are used."""
MAX_UPSCALE = 2.0
"""Largest upscaling factor per side: a larger one would teach blur as part of the style."""


def bucket_step(resolution: int) -> int:
    """Bucket sides are multiples of this many pixels: 64 at 512 and above, at least 8."""
    return min(64, max(8, resolution // 8 // 8 * 8))


def bucket_of(width: int, height: int, resolution: int) -> tuple[int, int]:
    """The (width, height) in pixels at which an image is trained.

    The sides of a size are multiples of the step, its aspect ratio is at most
    ``MAX_ASPECT_RATIO``, and its area is ``MIN_AREA`` to 1 of the budget: ``resolution ** 2``, or
    about four times the image's own area if that is less. Among the sizes that crop least, within
    ``SMALL_CUT``, the largest is chosen; among equally large ones the one that crops less.

    Args:
        resolution: side in pixels of the square that sets the budget.
    """
    step = bucket_step(resolution)
    reachable = int(MAX_UPSCALE * math.sqrt(width * height)) // step * step
    side = max(step, min(resolution, reachable))
    kept = {size: kept_of(width, height, size) for size in _sizes(side, step)}
    enough = max(kept.values()) - SMALL_CUT
    # The last element breaks ties, so that a rotated image gets the rotated bucket.
    return max(
        (size for size, share in kept.items() if share >= enough),
        key=lambda size: (size[0] * size[1], kept[size], -max(size)),
    )


def kept_of(width: int, height: int, size: tuple[int, int]) -> float:
    """Share of an image's area that remains after scaling it to cover ``size`` and cropping."""
    one, other = size[0] * height, size[1] * width
    return min(one, other) / max(one, other)


def cut_off(width: int, height: int, resolution: int) -> float:
    """Share of an image's area that is cropped at its bucket's size."""
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
