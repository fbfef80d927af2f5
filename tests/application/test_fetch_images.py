"""Which images and captions of a task are used; the others are reported to artist or operator."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adapters.memory import MemoryInspector, MemoryTrainer
from application.fetch_images import fetch_images
from application.ports import Blob, BlobDenied
from application.settlement import Ack, DeadLetter, RetryLater
from application.stop_signal import Stopped, StopReason, StopSignal
from application.worker_config import WorkerConfig
from domain.failure import Failure, FailureCode
from domain.job import JobState
from domain.location import Bucket, Location
from tests.application.world import CONFIG, TASK_ID, World, a_task


def test_too_few_usable_images_fail_with_reasons_for_the_artist(world: World) -> None:
    world.blobs.put(Location("media", "7/03.jpg"), b"broken")
    world.blobs.delete(Location("media", "7/04.jpg"))
    world.blobs.put(Location("media", "7/05.jpg"), b"x" * (10 * 1024**2 + 1))
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.job().state is JobState.FAILED
    (call,) = world.notifier.final
    assert isinstance(call.payload, Failure)
    assert call.payload.code is FailureCode.LOW_QUALITY_DATA
    for reason in (
        "03.jpg: the file is damaged",
        "04.jpg: the file is not",
        "05.jpg: the file is",
    ):
        assert reason in call.payload.message
    assert "listed" not in call.payload.message
    assert call.task_id == TASK_ID


def test_missing_images_are_reported_to_the_artist(world: World) -> None:
    gone = tuple(Location("media", f"gone/{n}.jpg") for n in range(10))
    assert world.worker()(replace(a_task(), images=gone), StopSignal()) == Ack()
    failure = world.job().failure
    assert failure is not None
    assert failure.code is FailureCode.LOW_QUALITY_DATA


def test_an_image_listed_several_times_is_fetched_once(world: World) -> None:
    task = a_task(images=9)
    repeated = replace(task, images=(*task.images, *task.images[:1] * 3))
    assert world.worker()(repeated, StopSignal()) == Ack()
    (call,) = world.notifier.final
    assert isinstance(call.payload, Failure)
    assert call.payload.code is FailureCode.LOW_QUALITY_DATA
    assert "Only 9 of 12 images" in call.payload.message
    assert "00.jpg: it is listed 4 times, and counts once" in call.payload.message


class Denying:
    """A store that denies reading images."""

    def __init__(self, world: World, denies: Callable[[Location], bool]) -> None:
        self._world, self._denies = world, denies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world.blobs, name)

    def get(self, at: Location, **options: Any) -> Blob:
        if at.bucket == "media" and self._denies(at):
            raise BlobDenied("403 for media: let the worker read it")
        return self._world.blobs.get(at, **options)


@pytest.mark.parametrize("images", [12, 10])
def test_a_single_denied_image_is_left_out(world: World, images: int) -> None:
    blobs = Denying(world, lambda at: at.key == "7/05.jpg")
    assert world.worker(blobs=blobs)(a_task(images), StopSignal()) == Ack()
    failure = world.job().failure
    assert (failure is None) == (images > 10)
    if failure is not None:
        assert "05.jpg: the file is not there or may not be read" in failure.message


def test_a_denied_image_has_the_name_that_the_others_have(world: World) -> None:
    blobs: Any = Denying(world, lambda at: at.key == "7/05.jpg")
    images = (*a_task().images, a_task().images[0])
    config = replace(CONFIG, repeats_from_folders=True)
    found = fetch_images(images, 512, blobs, MemoryInspector(), config, StopSignal())
    assert found.usable[0].name == "7/00.jpg"
    assert [image.name for image in found.rejected] == ["7/05.jpg", "7/00.jpg"]


def test_images_denied_for_a_while_delay_the_task(world: World) -> None:
    began = world.clock.monotonic()
    blobs = Denying(world, lambda _at: world.clock.monotonic() < began + 300.0)
    for retry in range(7):
        outcome = world.worker(blobs=blobs)(a_task(), StopSignal(), retry)
        if outcome == Ack():
            break
        assert isinstance(outcome, RetryLater)
        assert outcome.reason == "403 for media: let the worker read it"
        world.clock.advance(outcome.delay)
    assert world.job().state is JobState.COMPLETED
    assert [call.kind for call in world.notifier.final] == ["completed"]


def test_images_that_stay_denied_are_reported_to_the_operator(world: World) -> None:
    worker = world.worker(blobs=Denying(world, lambda _at: True))
    outcome = worker(a_task(), StopSignal(), CONFIG.max_retries)
    assert outcome == DeadLetter("403 for media: let the worker read it")
    assert world.notifier.final == []
    assert world.job().state is JobState.INTERRUPTED


def test_damaged_images_beside_a_denied_one_are_reported_to_the_artist(world: World) -> None:
    for n in range(9):
        world.blobs.put(Location("media", f"7/{n:02d}.jpg"), b"broken")
    blobs = Denying(world, lambda at: at.key == "7/09.jpg")
    assert world.worker(blobs=blobs)(a_task(), StopSignal()) == Ack()
    failure = world.job().failure
    assert failure is not None
    assert failure.code is FailureCode.LOW_QUALITY_DATA
    assert "00.jpg: the file is damaged" in failure.message
    assert "09.jpg: the file is not there or may not be read" in failure.message


def test_captions_are_stored_next_to_their_images(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.blobs.put(Location("media", "7/00.txt"), "a  red\nfox ".encode("utf-8-sig"))
    world.blobs.put(Location("media", "7/01.txt"), b"\xff\xfe\xff")
    world.blobs.put(Location("media", "7/02.txt"), b"red " * 5000)
    world.blobs.put(Location("media", "7/03.TXT"), "a red fox".encode("utf-16"))
    world.blobs.put(Location("media", "7/04.txt"), "a red fox".encode("utf-16-le"))
    plans = []

    class Noting(MemoryTrainer):
        def open(self, plan: Any, resume: bytes | None) -> Any:
            plans.append(plan)
            return super().open(plan, resume)

    world.worker(trainer=Noting(world.clock))(a_task(), StopSignal())
    captions = [image.caption for image in plans[0].images[:6]]
    assert captions == ["a red fox", None, None, "a red fox", None, None]
    assert [line for line in caplog.messages if "caption" in line] == [
        "the caption 01.txt is left out: it is not UTF-8; save it as UTF-8",
        "the caption 02.txt is left out: it is larger than 16 KB",
        "the caption 04.txt is left out: it has NUL characters, as UTF-16 has; save it as UTF-8",
    ]


def test_an_image_with_a_denied_caption_has_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 denies reading a missing key to a user without permission to list the bucket."""
    plain = world.blobs.get

    def get(at: Location, **options: Any) -> Blob:
        if at.name.endswith(".txt"):
            raise BlobDenied(f"403 for {at}")
        return plain(at, **options)

    monkeypatch.setattr(world.blobs, "get", get)
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.job().state is JobState.COMPLETED


def test_an_image_with_a_key_too_long_for_a_caption_is_used(world: World) -> None:
    longest = Location("media", "7/" + "k" * 1022)
    world.blobs.put(longest, b"an image")
    task = a_task(images=9)
    outcome = world.worker()(replace(task, images=(*task.images, longest)), StopSignal())
    assert outcome == Ack()
    assert world.job().state is JobState.COMPLETED


def test_kohya_folder_names_set_the_number_of_repeats(world: World) -> None:
    plans = []

    class Noting(MemoryTrainer):
        def open(self, plan: Any, resume: bytes | None) -> Any:
            plans.append(plan)
            return super().open(plan, resume)

    for key in ("3_cats/1.png", "3_cats/2.png", "1_dogs/1.png"):
        world.blobs.put(Location("media", key), key.encode())
    task = replace(a_task(), images=tuple(world.blobs.list(Bucket("media"), "3_cats")))
    task = replace(task, images=(*task.images, Location("media", "1_dogs/1.png")))
    config = replace(CONFIG, min_images=1, repeats_from_folders=True)
    world.worker(trainer=Noting(world.clock), config=config)(task, StopSignal())
    cats = ["3_cats/1.png"] * 3 + ["3_cats/2.png"] * 3
    assert [image.name for image in plans[0].images] == [*cats, "1_dogs/1.png"]


@pytest.mark.parametrize("slow", ["store", "inspector"])
def test_a_stop_interrupts_fetching_images(world: World, slow: str) -> None:
    stop, release = StopSignal(), threading.Event()

    class Slow:
        def __init__(self, part: Any) -> None:
            self._part = part

        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                stop.request(StopReason.CANCELLED)
                release.wait(30)
                return getattr(self._part, name)(*arguments, **options)

            return call

    blobs: Any = Slow(world.blobs) if slow == "store" else world.blobs
    inspector: Any = MemoryInspector() if slow == "store" else Slow(MemoryInspector())
    before = time.monotonic()
    try:
        with pytest.raises(Stopped):
            fetch_images(a_task().images, 512, blobs, inspector, WorkerConfig(), stop)
        assert time.monotonic() - before < 2
    finally:
        release.set()
