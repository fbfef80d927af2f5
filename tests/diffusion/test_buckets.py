from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.diffusion.buckets import MOST_ELONGATED, MOST_ENLARGED, bucket_of, bucket_step

SIDES = st.integers(256, 8000)
RESOLUTIONS = st.integers(1, 32).map(lambda count: count * 64)


@pytest.mark.parametrize(
    ("size", "resolution", "bucket"),
    [
        ((1000, 1000), 512, (512, 512)),
        ((1200, 800), 512, (640, 384)),
        ((800, 1200), 512, (384, 640)),
        ((1920, 1080), 512, (640, 384)),
        ((8000, 300), 512, (640, 384)),
        ((320, 320), 128, (128, 128)),
        ((384, 288), 128, (144, 112)),
        ((300, 300), 1024, (576, 576)),
    ],
)
def test_bucket_of_known_sizes(
    size: tuple[int, int], resolution: int, bucket: tuple[int, int]
) -> None:
    assert bucket_of(*size, resolution) == bucket


@pytest.mark.parametrize(
    ("resolution", "step"), [(64, 8), (128, 16), (192, 24), (512, 64), (2048, 64)]
)
def test_bucket_sides_grow_in_steps_of_an_eighth_up_to_64_pixels(
    resolution: int, step: int
) -> None:
    assert bucket_step(resolution) == step


@given(SIDES, SIDES, RESOLUTIONS)
def test_a_bucket_keeps_to_step_budget_and_shape(width: int, height: int, resolution: int) -> None:
    bucket = bucket_of(width, height, resolution)
    assert all(side > 0 and side % bucket_step(resolution) == 0 for side in bucket)
    assert bucket[0] * bucket[1] <= resolution**2
    assert max(bucket) <= MOST_ELONGATED * min(bucket)


@given(SIDES, SIDES, RESOLUTIONS)
def test_turning_a_picture_turns_its_bucket(width: int, height: int, resolution: int) -> None:
    assert bucket_of(height, width, resolution) == bucket_of(width, height, resolution)[::-1]


@given(SIDES, RESOLUTIONS)
def test_a_square_gets_the_whole_budget_unless_it_would_have_to_grow_too_much(
    side: int, resolution: int
) -> None:
    step = bucket_step(resolution)
    reachable = int(MOST_ENLARGED * side) // step * step
    assert bucket_of(side, side, resolution) == (min(resolution, reachable),) * 2


@given(SIDES, SIDES, RESOLUTIONS)
def test_what_is_cropped_is_less_than_a_quarter_for_ordinary_shapes(
    width: int, height: int, resolution: int
) -> None:
    ratio = width / height
    if not 0.5 <= ratio <= 2:
        return
    bucket_ratio = (lambda size: size[0] / size[1])(bucket_of(width, height, resolution))
    kept = min(ratio / bucket_ratio, bucket_ratio / ratio)
    assert kept > 0.75
