"""Failure messages are for artists: none contains operator terms."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from adapters.common.device_memory import gpu_oom
from adapters.diffusion import optimizer_libraries
from adapters.diffusion.nan_rollback import diverged
from adapters.memory import MemoryQueue
from adapters.schemas.task import TaskRules, encode_task
from application.ports import BlobMissing, BlobTooLarge
from application.run_training import CANCELLED, NOT_LEARNED
from application.stop_signal import StopSignal
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.location import Bucket, Location
from domain.parameters import OptimizerName
from domain.task import InvalidTask
from domain.training_plan import InitialLora
from tests.application.test_worker_loop import loop_over
from tests.application.world import CONFIG, World, a_task

OPERATORS_WORDS = re.compile(
    r"://|jobs/|data\.|\b([A-Z]+_[A-Z_]+|UUID|JSON|\w*Error|pip|buckets?|queue|broker|worker|lease|"
    r"journal|traceback)\b"
)


def reported_failures(world: World) -> list[Failure]:
    return [call.payload for call in world.notifier.final if isinstance(call.payload, Failure)]


def low_quality() -> Iterator[Failure]:
    world = World()
    world.blobs.put(Location("media", "7/03.jpg"), b"broken")
    world.blobs.delete(Location("media", "7/04.jpg"))
    world.blobs.put(Location("media", "7/05.jpg"), b"x" * (10 * 1024**2 + 1))
    world.worker()(a_task(), StopSignal())
    yield from reported_failures(world)
    world = World()
    world.worker()(a_task(images=1), StopSignal())
    yield from reported_failures(world)


def too_many_failures() -> Iterator[Failure]:
    world = World()
    config = replace(CONFIG, max_failures=0)
    world.worker(config=config)(a_task(), StopSignal())
    yield from reported_failures(world)


def bad_messages() -> Iterator[Failure]:
    good: dict[str, Any] = json.loads(encode_task(a_task()))
    parameters = [
        {"epochs": -1},
        {"network_weights": 5},
        {"seed": "s3://bucket/key"},
        {"learning_rate": "fast"},
    ]
    bodies = [{**good, "data": {**good["data"], "parameters": wrong}} for wrong in parameters]
    bodies += [
        {**good, "task_id": "x"},
        {**good, "created_at": "x"},
        {**good, "data": {**good["data"], "images": ["file:///etc/passwd"]}},
        {**good, "data": {**good["data"], "images": []}},
    ]
    for body in bodies:
        world = World()
        queue = MemoryQueue(world.clock)
        queue.publish(json.dumps(body).encode())
        loop_over(world, queue)(StopSignal(), until_empty=True)
        (failure,) = reported_failures(world)
        yield failure


def too_large() -> Iterator[Failure]:
    rules = TaskRules(
        image_buckets=[],
        models=Bucket("models"),
        own_buckets=[],
        in_folders=False,
        weights_in_folder=False,
        max_steps=10,
        max_resolution=64,
    )
    for named in ({"epochs": 100}, {"epochs": 1, "resolution": 512}):
        with pytest.raises(InvalidTask) as caught:
            rules.check(a_task(**named))
        caught.value.style_id = 7
        world = World()
        loop_over(world, MemoryQueue(world.clock)).reject(b"", caught.value, StopSignal(), 0)
        yield from reported_failures(world)


def unusable_lora() -> Iterator[Failure]:
    for error in (BlobMissing("reading s3://b/k"), BlobTooLarge("s3://b/k has 9 bytes")):

        def load(_text: str, error: Exception = error) -> InitialLora:
            raise error

        world = World()
        task = a_task(network_weights="s3://media/lora.safetensors")
        world.worker(load_lora=load)(task, StopSignal())
        yield from reported_failures(world)
    for initial in (InitialLora(b"", 512, 8.0), InitialLora(b"", 8, -1.0)):
        world = World()
        task = a_task(network_weights="s3://media/lora.safetensors", dim_from_weights=True)
        world.worker(load_lora=lambda _, initial=initial: initial)(task, StopSignal())
        yield from reported_failures(world)


def missing_optimizer() -> Iterator[Failure]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(optimizer_libraries, "find_spec", lambda _: None)
        with pytest.raises(TrainingFailed) as caught:
            optimizer_libraries.require_optimizer(OptimizerName.PRODIGY)
    yield caught.value.failure


def test_no_message_to_the_artist_has_operator_terms() -> None:
    sources = (
        *(low_quality, too_many_failures, bad_messages, too_large, unusable_lora),
        missing_optimizer,
    )
    failures = [
        *(failure for source in sources for failure in source()),
        gpu_oom().failure,
        diverged(3).failure,
        NOT_LEARNED,
        CANCELLED,
    ]
    assert {failure.code for failure in failures} == set(FailureCode)
    assert len(failures) == 22
    assert [f.message for f in failures if OPERATORS_WORDS.search(f.message)] == []
