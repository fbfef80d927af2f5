from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.diffusion.data.rng import (
    StepNoise,
    epoch_batches,
    sample_step_noise,
    steps_per_epoch,
)
from domain.parameters import TrainingParameters

SHAPE = (64, 4, 2, 2)


@st.composite
def buckets(draw: st.DrawFn) -> list[tuple[int, ...]]:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    positions = iter(range(sum(sizes)))
    return [tuple(next(positions) for _ in range(size)) for size in sizes]


def draw(step: int = 0, **parameters: Any) -> StepNoise:
    values = {"epochs": 1, "resolution": 64, **parameters}
    return sample_step_noise(TrainingParameters(**values), step, SHAPE, 1000)


@given(buckets(), st.integers(1, 5), st.integers(0, 99))
def test_an_epoch_visits_every_image_once_in_batches_of_one_bucket(
    buckets: list[tuple[int, ...]], batch_size: int, epoch: int
) -> None:
    batches = epoch_batches(buckets, batch_size, 3, epoch)
    visited = sorted(image for batch in batches for image in batch)
    assert visited == sorted(image for bucket in buckets for image in bucket)
    assert all(any(set(batch) <= set(bucket) for bucket in buckets) for batch in batches)
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert len(batches) == steps_per_epoch(buckets, batch_size)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    buckets = [tuple(range(30))]
    order = epoch_batches(buckets, 1, seed=1, epoch=4)
    assert epoch_batches(buckets, 1, seed=1, epoch=4) == order
    assert epoch_batches(buckets, 1, seed=2, epoch=4) != order
    assert epoch_batches(buckets, 1, seed=1, epoch=5) != order


def test_the_random_numbers_of_a_step_do_not_depend_on_earlier_draws() -> None:
    again = draw(step=5, noise_offset=0.1, random_flip=True, caption_dropout=0.5)
    torch.rand(1000)
    state = torch.random.get_rng_state()
    first = draw(step=5, noise_offset=0.1, random_flip=True, caption_dropout=0.5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.vae_noise, again.vae_noise)
    assert torch.equal(first.timesteps, again.timesteps)
    assert (first.flipped, first.caption_dropped) == (again.flipped, again.caption_dropped)
    assert not torch.equal(draw(step=6).noise, first.noise)


def test_enabled_options_occur_at_their_rate() -> None:
    assert not any(draw().flipped)
    assert not any(draw().caption_dropped)
    drawn = [draw(step, random_flip=True, caption_dropout=0.2) for step in range(20)]
    flipped = sum(sum(one.flipped) for one in drawn) / (20 * SHAPE[0])
    caption_dropped = sum(sum(one.caption_dropped) for one in drawn) / (20 * SHAPE[0])
    assert flipped == pytest.approx(0.5, abs=0.05)
    assert caption_dropped == pytest.approx(0.2, abs=0.05)


def test_the_noise_offset_is_one_value_per_image_and_channel() -> None:
    shift = draw(noise_offset=0.25).noise - draw().noise
    assert shift.std(dim=(2, 3)).max() < 1e-6
    assert shift[:, :, 0, 0].std() == pytest.approx(0.25, rel=0.15)


def test_timesteps_span_the_noise_schedule() -> None:
    timesteps = torch.cat([draw(step).timesteps for step in range(50)])
    assert timesteps.min() < 10
    assert 990 <= timesteps.max() <= 999
