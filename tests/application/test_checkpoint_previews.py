"""Checkpoint previews: stored next to the report, bounded, and never a reason to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from adapters.memory import ManualClock, MemoryBlobStore, MemoryTrainer
from application.ports import BlobDenied, BlobUnavailable, TrainerBroken
from application.settlement import Ack, Requeue, RetryLater
from application.stop_signal import StopReason, StopSignal
from application.style_report import CheckpointPreviews
from domain.events import PreviewsScored
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.job import JobState, TrainingJob
from domain.location import Location
from domain.report import StyleReport
from domain.results import Preview, PreviewScores
from tests.application.world import (
    CONFIG,
    KEYS,
    TASK_ID,
    Watched,
    World,
    a_task,
    stored_epochs,
)

JOB = TrainingJob(task_id=TASK_ID, style_id=7)


class Drawing:
    """A session that only draws and scores, each round in its time."""

    def __init__(self, clock: ManualClock, seconds: float, count: int = 2) -> None:
        self.clock, self.seconds, self.count, self.rounds = clock, seconds, count, 0

    def previews(self, *, with_lora: bool, check: Callable[[], None]) -> tuple[Preview, ...]:
        self.rounds += 1
        self.clock.advance(self.seconds)
        return tuple(Preview("a fox", n, f"{self.rounds}/{n}".encode()) for n in range(self.count))

    def score_previews(
        self, previews: tuple[Preview, ...], check: Callable[[], None]
    ) -> PreviewScores:
        assert len(previews) == self.count
        return PreviewScores(self.rounds / 10, 0.9)


def drawn_at(
    share: float, round_seconds: float, *, epochs: int = 10, most: int = 20
) -> tuple[list[int], float]:
    """The epochs that got previews, of epochs that train for 100 s each; and the share spent."""
    clock, blobs = ManualClock(), MemoryBlobStore()
    clock.advance(10_000)  # what was before the run counts for nothing
    config = replace(CONFIG, preview_share=share, max_preview_rounds=most)
    store = World().store(blobs=blobs, clock=clock)
    previews = CheckpointPreviews(store, config)
    session: Any = Drawing(clock, round_seconds)
    for epoch in range(1, epochs + 1):
        clock.advance(100)
        if previews.affordable():
            previews.draw(session, JOB, epoch, StopSignal())
    found = [epoch for epoch, _ in store.previews(TASK_ID)]
    assert len(found) == session.rounds
    return found, session.rounds * round_seconds / (100 * epochs)


def test_cheap_previews_are_drawn_at_every_checkpoint() -> None:
    assert drawn_at(0.05, round_seconds=2)[0] == list(range(1, 11))


@pytest.mark.parametrize(
    ("share", "round_seconds", "epochs"), [(0.05, 20, [1, 8]), (0.5, 100, [1, 4, 6, 8, 10])]
)
def test_slow_previews_keep_to_their_share_of_training_time_after_the_first(
    share: float, round_seconds: float, epochs: list[int]
) -> None:
    drawn, spent = drawn_at(share, round_seconds)
    assert drawn == epochs
    assert spent <= share


def test_the_number_of_checkpoint_previews_is_bounded() -> None:
    assert drawn_at(1.0, round_seconds=0, epochs=50, most=20)[0] == list(range(1, 21))


def test_a_share_of_zero_draws_no_previews() -> None:
    assert drawn_at(0.0, round_seconds=0)[0] == []


def test_stored_previews_are_read_back_in_order() -> None:
    clock, blobs = ManualClock(), MemoryBlobStore()
    store = World().store(blobs=blobs, clock=clock)
    previews = CheckpointPreviews(store, CONFIG)
    session: Any = Drawing(clock, 0, count=2)
    for epoch in (10, 120, 20):
        previews.draw(session, JOB, epoch, StopSignal())
    assert store.previews(TASK_ID) == (
        (10, (b"1/0", b"1/1")),
        (20, (b"3/0", b"3/1")),
        (120, (b"2/0", b"2/1")),
    )


@pytest.mark.parametrize("error", [BlobUnavailable("no way"), BlobDenied("no way")])
def test_a_failing_store_loses_the_previews_of_one_checkpoint(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    class AwayOnce(MemoryBlobStore):
        away = True

        def put(self, *content: Any, **options: Any) -> str:
            if self.away:
                self.away = False
                raise error
            return super().put(*content, **options)

    clock, blobs = ManualClock(), AwayOnce()
    store = World().store(blobs=blobs, clock=clock)
    previews = CheckpointPreviews(store, CONFIG)
    session: Any = Drawing(clock, 0)
    for epoch in (10, 20):
        assert previews.affordable()
        previews.draw(session, JOB, epoch, StopSignal())
    assert [epoch for epoch, _ in store.previews(TASK_ID)] == [20]
    assert "could not store the previews of epoch 10: no way" in caplog.text


class Seen:
    """A reporter that keeps what it is shown."""

    def render(self, report: StyleReport) -> list[Any]:
        self.report = report
        return []


@pytest.mark.parametrize(("epochs", "shown"), [(25, [10, 20]), (20, [10])])
def test_a_run_stores_previews_with_its_checkpoints_and_in_the_report(
    epochs: int, shown: list[int]
) -> None:
    """The previews at the end belong to the report."""
    world, reporter = World(), Seen()
    assert world.worker(reporter=reporter)(a_task(epochs=epochs), StopSignal()) == Ack()
    assert [epoch for epoch, _ in reporter.report.checkpoint_previews] == shown
    assert KEYS.report(TASK_ID, "previews/epoch_00010_0.png") in world.blobs.blobs
    assert KEYS.report(TASK_ID, "previews/epoch_00010_0.png").key.startswith(
        f"jobs/{TASK_ID}/report/previews/"
    )


def test_no_previews_are_drawn_after_a_stop() -> None:
    world, stop = World(), StopSignal()
    trainer = Watched(world, 30, lambda: stop.request(StopReason.SHUTDOWN))
    assert world.worker(trainer=trainer)(a_task(), stop) == Requeue()
    assert world.store().previews(TASK_ID) == ()


def test_a_stop_while_previews_are_drawn_stores_no_second_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, stop = World(), StopSignal()
    put, written = world.blobs.put, []

    def noted(at: Location, data: bytes, **options: Any) -> str:
        written.append(at.key)
        return put(at, data, **options)

    def previews(*, with_lora: bool, check: Callable[[], None]) -> Any:
        stop.request(StopReason.SHUTDOWN, deadline=world.clock.monotonic() + 25)
        check()

    class Stopping(MemoryTrainer):
        @contextmanager
        def open(self, plan: Any, resume: Any) -> Iterator[Any]:
            with super().open(plan, resume) as session:
                # A double of one call.
                session.previews = previews  # type: ignore[assignment, method-assign]
                yield session

    monkeypatch.setattr(world.blobs, "put", noted)
    assert world.worker(trainer=Stopping(world.clock))(a_task(), stop) == Requeue()
    assert stored_epochs(world) == [10]
    assert sum("/checkpoints/" in key for key in written) == 1
    assert not any("/previews/" in key for key in written)


def test_previews_are_scored_announced_and_shown_in_the_report() -> None:
    world, reporter = World(), Seen()
    assert world.worker(reporter=reporter)(a_task(), StopSignal()) == Ack()
    scores = reporter.report.scores
    assert list(scores) == [10, 20, 25], "the last are those of the report's own previews"
    assert [score.closeness for score in scores.values()] == [0.4, 0.8, 1.0]
    scored = [event for event in world.events if isinstance(event, PreviewsScored)]
    assert [(event.epoch, event.scores.closeness) for event in scored] == [(10, 0.4), (20, 0.8)]


def test_previews_that_cannot_be_scored_are_shown_without_scores(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(previews: Any, check: Any) -> Any:
        raise RuntimeError("no memory for that")

    class Failing(MemoryTrainer):
        @contextmanager
        def open(self, plan: Any, resume: Any) -> Iterator[Any]:
            with super().open(plan, resume) as session:
                # A double of one call.
                session.score_previews = fail  # type: ignore[assignment, method-assign]
                yield session

    world, reporter = World(), Seen()
    trainer = Failing(world.clock)
    assert world.worker(reporter=reporter, trainer=trainer)(a_task(), StopSignal()) == Ack()
    assert [epoch for epoch, _ in reporter.report.checkpoint_previews] == [10, 20]
    assert reporter.report.scores == {}
    assert "could not score the previews" in caplog.text


def out_of_memory() -> Exception:
    return TrainingFailed(Failure(FailureCode.GPU_OOM, "full"))


@pytest.mark.parametrize("error", [out_of_memory, lambda: BlobUnavailable("away"), RuntimeError])
def test_failing_previews_do_not_fail_the_job(error: Callable[[], Exception]) -> None:
    world = World()
    undisturbed = World()
    undisturbed.worker()(a_task(), StopSignal())
    drawn = []

    def previews(*, with_lora: bool, check: Callable[[], None]) -> Any:
        drawn.append(with_lora)
        raise error()

    class Failing(MemoryTrainer):
        @contextmanager
        def open(self, plan: Any, resume: Any) -> Iterator[Any]:
            with super().open(plan, resume) as session:
                session.previews = previews  # type: ignore[assignment, method-assign]  # a double of one call
                yield session

    assert world.worker(trainer=Failing(world.clock))(a_task(), StopSignal()) == Ack()
    assert world.job().state is JobState.COMPLETED
    assert world.weights() == undisturbed.weights()
    # One try at a checkpoint, and then the report's own.
    assert drawn[0] is True
    assert drawn.count(True) == 1


def test_a_device_lost_while_drawing_previews_ends_the_worker() -> None:
    world = World()

    def break_down(*, with_lora: bool, check: Callable[[], None]) -> Any:
        raise TrainerBroken(f"CUDA error, with_lora={with_lora}")

    class Broken(MemoryTrainer):
        @contextmanager
        def open(self, plan: Any, resume: Any) -> Iterator[Any]:
            with super().open(plan, resume) as session:
                session.previews = break_down  # type: ignore[assignment, method-assign]  # a double of one call
                yield session

    outcome = world.worker(trainer=Broken(world.clock))(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater)
    assert outcome.device_broken
    assert world.job().checkpoint is not None
    assert KEYS.weights(7) not in world.blobs.blobs, "it does not train on"
