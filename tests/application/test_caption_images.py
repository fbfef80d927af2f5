"""Generated captions for images without one, also when a job resumes."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.memory import MemoryCaptioner, MemoryTrainer
from application.settlement import Ack, RetryLater
from application.stop_signal import StopReason, StopSignal
from domain.image import TrainingImage
from domain.location import Location
from tests.application.world import KEYS, TASK_ID, AwayAfter, Watched, World, a_task


class Noting(MemoryTrainer):
    """Keeps the images of each plan."""

    def __init__(self, world: World) -> None:
        super().__init__(world.clock)
        self.images: list[tuple[TrainingImage, ...]] = []

    def open(self, plan: Any, resume: bytes | None) -> Any:
        self.images.append(plan.images)
        return super().open(plan, resume)


def test_only_images_without_a_caption_get_a_generated_one(world: World) -> None:
    world.blobs.put(Location("media", "7/03.txt"), b"by the artist")
    trainer, captioner = Noting(world), MemoryCaptioner()
    assert world.worker(trainer=trainer, captioner=captioner)(a_task(), StopSignal()) == Ack()
    (images,) = trainer.images
    assert (images[3].caption, images[3].generated_caption) == ("by the artist", None)
    assert (images[4].caption, images[4].generated_caption) == (None, "image 4")
    assert captioner.described == 9


def test_without_a_captioner_images_stay_without_a_caption(world: World) -> None:
    trainer = Noting(world)
    world.worker(trainer=trainer)(a_task(), StopSignal())
    assert {image.generated_caption for image in trainer.images[0]} == {None}
    assert KEYS.job(TASK_ID, "captions.json") not in world.blobs.blobs


@pytest.mark.parametrize("later", [None, MemoryCaptioner("another model's ")])
def test_a_resumed_job_keeps_the_captions_of_its_first_attempt(
    world: World, later: MemoryCaptioner | None
) -> None:
    stop = StopSignal()
    first = Watched(world, 33, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=first, captioner=MemoryCaptioner())(a_task(), stop)
    trainer = Noting(world)
    assert world.worker(trainer=trainer, captioner=later)(a_task(), StopSignal()) == Ack()
    assert [image.generated_caption for image in trainer.images[0]][:2] == ["image 0", "image 1"]


def test_a_job_started_without_captions_continues_without(world: World) -> None:
    stop = StopSignal()
    first = Watched(world, 33, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=first)(a_task(), stop)
    trainer, captioner = Noting(world), MemoryCaptioner()
    world.worker(trainer=trainer, captioner=captioner)(a_task(), StopSignal())
    assert captioner.described == 0
    assert trainer.images[0][0].generated_caption is None


def test_captions_that_another_worker_stored_first_are_used(world: World) -> None:
    store = world.store()
    assert store.add_captions(TASK_ID, {"a": "first"}) == {"a": "first"}
    assert store.add_captions(TASK_ID, {"a": "second"}) == {"a": "first"}


def test_captions_wait_for_an_unavailable_store(world: World) -> None:
    blobs = AwayAfter(world, lambda at, _: at == KEYS.job(TASK_ID, "captions.json"), 30.0)
    worker = world.worker(blobs=blobs, captioner=MemoryCaptioner())
    assert isinstance(worker(a_task(), StopSignal()), RetryLater)
    world.clock.sleep(60.0)
    trainer = Noting(world)
    worker = world.worker(trainer=trainer, captioner=MemoryCaptioner())
    assert worker(a_task(), StopSignal()) == Ack()
    assert trainer.images[0][0].generated_caption == "image 0"
