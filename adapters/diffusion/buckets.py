"""Aspect-ratio buckets: every picture keeps its shape, at one budget of pixels.

The idea is NovelAI's ("NovelAI Improvements on Stable Diffusion", 2022): sizes of about the
same area and different shapes, so that nothing is squashed and steps cost the same.
"""

from __future__ import annotations

import math

MOST_ELONGATED = 2.0
"""Longest side over shortest; pictures beyond it are cropped to it."""
MOST_ENLARGED = 2.0
"""How far a picture may be scaled up, per side: more would teach blur as part of the style."""


def bucket_step(resolution: int) -> int:
    """Bucket sides are multiples of this many pixels: 64 at 512 and above, never below 8."""
    return min(64, max(8, resolution // 8 // 8 * 8))


def bucket_of(width: int, height: int, resolution: int) -> tuple[int, int]:
    """The (width, height) in pixels at which a picture is trained.

    The area is at most ``resolution ** 2``, or about four times the picture's own where that
    is less. Of all such sizes the one nearest in shape is taken, and of those the largest.

    Args:
        resolution: side in pixels of the square that sets the budget.
    """
    step = bucket_step(resolution)
    reachable = int(MOST_ENLARGED * math.sqrt(width * height)) // step * step
    side = max(step, min(resolution, reachable))
    wanted = math.log(width / height)

    def fitness(size: tuple[int, int]) -> tuple[float, int]:
        strangeness = abs(math.log(size[0] / size[1]) - wanted)
        return (-round(strangeness, 9), size[0] * size[1])

    return max(_sizes(side, step), key=fitness)


def _sizes(side: int, step: int) -> list[tuple[int, int]]:
    """For every width the tallest size within the budget, and for every height the widest."""
    budget = side**2
    sizes = {(side, side)}
    for one in range(step, int(side * math.sqrt(MOST_ELONGATED)) + 1, step):
        other = budget // one // step * step
        if other and max(one, other) <= MOST_ELONGATED * min(one, other):
            sizes |= {(one, other), (other, one)}
    return sorted(sizes)
