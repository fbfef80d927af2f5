from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.buckets import (
    MAX_ASPECT_RATIO,
    MAX_UPSCALE,
    MIN_AREA,
    SMALL_CUT,
    bucket_of,
    bucket_step,
    kept_of,
)

SIDES = st.integers(256, 8000)
RESOLUTIONS = st.integers(1, 32).map(lambda count: count * 64)


@pytest.mark.parametrize(
    ("size", "resolution", "bucket", "cut"),
    [
        ((1000, 1000), 512, (512, 512), 0.0),
        ((1280, 1024), 512, (576, 448), 0.03),
        ((1600, 1200), 512, (576, 448), 0.04),
        ((3508, 2480), 512, (576, 384), 0.06),
        ((1200, 800), 512, (576, 384), 0.0),
        ((800, 1200), 512, (384, 576), 0.0),
        ((1920, 1080), 512, (640, 384), 0.06),
        ((2000, 1000), 512, (640, 320), 0.0),
        ((2500, 1000), 512, (768, 320), 0.04),
        ((3000, 1000), 512, (768, 320), 0.2),
        ((1600, 1200), 768, (832, 640), 0.03),
        ((1920, 1080), 768, (1024, 576), 0.0),
        ((320, 320), 128, (128, 128), 0.0),
        ((384, 288), 128, (144, 112), 0.04),
        ((300, 300), 1024, (576, 576), 0.0),
    ],
)
def test_bucket_of_known_sizes(
    size: tuple[int, int], resolution: int, bucket: tuple[int, int], cut: float
) -> None:
    assert bucket_of(*size, resolution) == bucket
    assert round(1 - kept_of(*size, bucket), 2) == cut


@pytest.mark.parametrize(
    ("resolution", "step"), [(64, 8), (128, 16), (192, 24), (448, 56), (512, 64), (2048, 64)]
)
def test_bucket_sides_grow_in_steps_of_an_eighth_up_to_64_pixels(
    resolution: int, step: int
) -> None:
    assert bucket_step(resolution) == step


@given(SIDES, SIDES, RESOLUTIONS)
def test_bucket_sides_respect_step_area_and_aspect_ratio(
    width: int, height: int, resolution: int
) -> None:
    bucket = bucket_of(width, height, resolution)
    assert all(side > 0 and side % bucket_step(resolution) == 0 for side in bucket)
    assert bucket[0] * bucket[1] <= resolution**2
    assert max(bucket) <= MAX_ASPECT_RATIO * min(bucket)


@given(SIDES, SIDES, RESOLUTIONS)
def test_no_other_size_cuts_off_noticeably_less_and_no_larger_one_as_little(
    width: int, height: int, resolution: int
) -> None:
    if width * height * MAX_UPSCALE**2 < resolution**2:
        return
    step = bucket_step(resolution)
    sides = range(step, 2 * resolution, step)
    kept = {
        size: kept_of(width, height, size)
        for size in product(sides, sides)
        if MIN_AREA <= math.prod(size) / resolution**2 <= 1
        and max(size) <= MAX_ASPECT_RATIO * min(size)
    }
    bucket = bucket_of(width, height, resolution)
    best = max(kept.values())
    assert kept[bucket] >= best - SMALL_CUT
    larger = [share for size, share in kept.items() if math.prod(size) > math.prod(bucket)]
    assert all(share < best - SMALL_CUT for share in larger)


def test_few_sizes_are_in_use() -> None:
    """Each costs a recording, and a last batch of its own in every epoch."""
    images = [(width, 2000) for width in range(500, 8001, 5)]
    assert len({bucket_of(*image, 512) for image in images}) == 15


@given(SIDES, SIDES, RESOLUTIONS)
def test_turning_an_image_turns_its_bucket(width: int, height: int, resolution: int) -> None:
    assert bucket_of(height, width, resolution) == bucket_of(width, height, resolution)[::-1]


@given(SIDES, RESOLUTIONS)
def test_a_square_gets_the_whole_budget_unless_it_would_have_to_grow_too_much(
    side: int, resolution: int
) -> None:
    step = bucket_step(resolution)
    reachable = int(MAX_UPSCALE * side) // step * step
    assert bucket_of(side, side, resolution) == (min(resolution, reachable),) * 2


@given(SIDES, SIDES, RESOLUTIONS)
def test_less_than_a_seventh_is_cropped_from_ordinary_aspect_ratios(
    width: int, height: int, resolution: int
) -> None:
    if max(width, height) <= MAX_ASPECT_RATIO * min(width, height):
        assert kept_of(width, height, bucket_of(width, height, resolution)) > 6 / 7
