"""No options, however extreme, deliver a style that is worse than the base model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adapters.diffusion.base.model import load_base
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from application.settlement import Ack
from application.stop_signal import StopSignal
from assets.drawing import draw_styled_scene
from domain.failure import FailureCode
from domain.job import JobState, TrainingJob
from domain.location import Location
from domain.parameters import LearningRateSchedule
from entrypoints.models import SMALL_BASE
from tests.application.world import CONFIG, World, a_task

pytestmark = pytest.mark.integration

IMAGES = 2


@cache
def trainer() -> DiffusionTrainer:
    return DiffusionTrainer(load_base(str(SMALL_BASE)), decode)


@cache
def image(number: int) -> bytes:
    drawn, _ = draw_styled_scene(np.random.default_rng(number), 64)
    file = BytesIO()
    drawn.save(file, "PNG")
    return file.getvalue()


def outcome(**options: Any) -> TrainingJob:
    """Run a job with these options. Returns its record."""
    world = World()
    for n in range(IMAGES):
        world.blobs.put(Location("media", f"7/{n:02d}.jpg"), image(n))
    named = {"epochs": 4, "batch_size": 2, "resolution": 64, "validation_epochs": 2, **options}
    config = replace(CONFIG, min_images=1, checkpoint_every=2, preview_share=0.0)
    worker = world.worker(trainer=trainer(), config=config)
    worker = replace(worker, write_report=replace(worker.write_report, with_previews=False))
    assert worker(a_task(IMAGES, **named), StopSignal()) == Ack()
    return world.job()


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.floats(-8, -1).map(lambda exponent: 10**exponent),
        "alpha": st.floats(-3, 3).map(lambda exponent: 10**exponent),
        "rank": st.sampled_from([1, 2, 8, 64]),
        "lr_scheduler": st.sampled_from([str(schedule) for schedule in LearningRateSchedule]),
        "seed": st.integers(0, 9),
    },
)


def check(options: dict[str, Any]) -> None:
    job = outcome(**options)
    if job.state is JobState.COMPLETED:
        metric = job.metric
        assert metric is not None
        assert metric.measured_loss is not None
        assert metric.base_loss is not None
        assert metric.measured_loss <= metric.base_loss
    else:
        assert job.failure is not None
        assert job.failure.code in {FailureCode.STYLE_NOT_LEARNED, FailureCode.LOSS_DIVERGED}


SLOW = [HealthCheck.too_slow]


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=SLOW)
@example({"learning_rate": 0.1, "alpha": 1000.0, "lr_scheduler": "constant"})
@given(OPTIONS)
def test_no_ready_style_is_worse_than_the_base(options: dict[str, Any]) -> None:
    check(options)


@pytest.mark.long
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(OPTIONS)
def test_no_ready_style_is_worse_than_the_base_in_many_runs(options: dict[str, Any]) -> None:
    check(options)


def test_a_sound_run_is_ready_with_a_lower_loss() -> None:
    job = outcome(learning_rate=5e-3, epochs=8)
    assert job.state is JobState.COMPLETED
    assert job.metric is not None
    assert job.metric.measured_loss is not None
    assert job.metric.base_loss is not None
    assert job.metric.measured_loss < 0.95 * job.metric.base_loss
