"""Tasks that would keep a worker for days are rejected before anything is fetched."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.schemas.task import TaskRules
from domain.location import Bucket, Location
from domain.parameters import RequestedParameters
from domain.task import InvalidTask, TrainingTask


def rules(max_steps: int = 100_000) -> TaskRules:
    return TaskRules(
        image_buckets=[Bucket("media")],
        models=Bucket("models"),
        own_buckets=[Bucket("models")],
        in_folders=False,
        weights_in_folder=False,
        max_steps=max_steps,
        max_resolution=1024,
    )


def task(images: int = 10, **named: Any) -> TrainingTask:
    return TrainingTask(
        task_id="a-task",
        style_id=7,
        images=tuple(Location("media", f"{n}.png") for n in range(images)),
        requested=RequestedParameters(named),
    )


def test_more_steps_than_allowed_are_rejected_with_the_product() -> None:
    with pytest.raises(InvalidTask) as rejected:
        rules().check(task(100, epochs=10_000))
    assert "10000, and with 100 images epochs x images is 1000000" in str(rejected.value)
    assert "at most 100000 (MAX_JOB_STEPS)" in str(rejected.value)


def test_omitted_epochs_count_at_their_default() -> None:
    rules(5_000).check(task(10))
    with pytest.raises(InvalidTask, match="is 5000"):
        rules(4_999).check(task(10))


def test_an_image_that_is_listed_twice_counts_once() -> None:
    twice = task(10, epochs=10)
    twice = TrainingTask(
        task_id="a", style_id=7, images=twice.images * 2, requested=twice.requested
    )
    rules(100).check(twice)


def test_a_resolution_above_the_limit_is_rejected() -> None:
    rules().check(task(resolution=1024))
    with pytest.raises(InvalidTask, match=r"resolution is 2048: give at most 1024"):
        rules().check(task(resolution=2048))
