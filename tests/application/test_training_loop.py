"""The training loop: checkpoints, progress, and the shutdown timeout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from adapters.memory import MemoryBlobStore, MemoryTrainer
from application.ports import BlobDenied, BlobUnavailable, NotifierRejected, NotifierUnavailable
from application.settlement import Ack, Requeue
from application.stop_signal import StopReason, StopSignal
from domain.events import CheckpointSaved, JobStarted, PartTimed, ProgressMade
from domain.job import JobState
from domain.location import Location
from domain.progress import Progress
from tests.application.world import CONFIG, KEYS, TASK_ID, Watched, World, a_task, stored_epochs


def test_checkpoints_are_saved_every_ten_epochs_and_at_the_end(world: World) -> None:
    world.worker()(a_task(), StopSignal())
    saved = [e.checkpoint.epoch for e in world.events if isinstance(e, CheckpointSaved)]
    assert saved == [10, 20, 25]


def test_the_style_of_each_checkpoint_is_stored_next_to_it(world: World) -> None:
    world.worker(config=replace(CONFIG, keep_checkpoints=None))(a_task(), StopSignal())
    assert stored_epochs(world, "styles") == [10, 20, 25]
    styles = [world.blobs.get(KEYS.epoch_style(TASK_ID, epoch)).data for epoch in (10, 20, 25)]
    assert styles[-1] == world.weights()
    assert len(set(styles)) == 3


@pytest.mark.parametrize("error", [BlobDenied("no way"), BlobUnavailable("no way")])
def test_a_checkpoints_style_that_cannot_be_stored_affects_nothing_else(
    world: World, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    class Denying:
        def __getattr__(self, name: str) -> Any:
            def put(at: Location, *content: Any, **options: Any) -> str:
                if "/styles/" in at.key:
                    raise error
                return world.blobs.put(at, *content, **options)

            return put if name == "put" else getattr(world.blobs, name)

    config = replace(CONFIG, keep_checkpoints=None)
    assert world.worker(blobs=Denying(), config=config)(a_task(), StopSignal()) == Ack()
    assert stored_epochs(world) == [10, 20, 25]
    assert "could not store the checkpoint's LoRA file: no way" in caplog.text


def test_progress_is_sent_at_its_interval_and_never_after_the_end(world: World) -> None:
    world.worker()(a_task(), StopSignal())
    kinds = [call.kind for call in world.notifier.calls]
    assert kinds[-1] == "completed"
    sent = [c.payload for c in world.notifier.calls if isinstance(c.payload, Progress)]
    assert len(sent) == 75 // 7
    assert [p.current_step for p in sent] == sorted(p.current_step for p in sent)
    assert all(p.steps_per_second == pytest.approx(1.0, rel=0.2) for p in sent)
    assert sent[-1].loss == 1 / (1 + sent[-1].current_epoch)


def test_no_progress_is_sent_before_its_speed_is_known(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.worker(config=replace(CONFIG, progress_every=0.25))(a_task(), StopSignal())
    sent = [c.payload for c in world.notifier.calls if isinstance(c.payload, Progress)]
    assert sent[0].current_step == 2
    assert None not in {p.steps_per_second for p in sent}
    made = [e.progress for e in world.events if isinstance(e, ProgressMade)]
    assert [p.steps_per_second is None for p in made[:3]] == [True, False, False]
    assert caplog.messages == []


def test_repeated_steps_are_sent_with_the_current_speed(world: World) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    world.worker(trainer=Watched(world, 55, fail))(a_task(), StopSignal())
    world.notifier.calls.clear()
    slower = MemoryTrainer(world.clock, step_seconds=5.0)
    assert world.worker(trainer=slower)(a_task(), StopSignal()) == Ack()
    sent = [c.payload for c in world.notifier.calls if isinstance(c.payload, Progress)]
    assert (sent[0].current_step, sent[0].redone) == (54, 22)
    assert all(p.steps_per_second == pytest.approx(0.2) for p in sent)


@pytest.mark.parametrize("error", [NotifierUnavailable("502"), NotifierRejected("404")])
def test_progress_that_is_not_delivered_is_no_error(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fail(_style_id: int, _progress: Progress) -> None:
        raise error

    monkeypatch.setattr(world.notifier, "progress", fail)
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert {(r.levelname, r.message.split(":")[0]) for r in caplog.records} == {
        ("WARNING", "progress call failed and is not retried")
    }


SILENCE = NotifierUnavailable("no answer within 5 s")
REJECTION = NotifierRejected("400")


@pytest.mark.parametrize("errors", [[SILENCE], [SILENCE, REJECTION], [REJECTION]])
def test_the_completion_call_waits_until_abandoned_progress_cannot_arrive(
    world: World, monkeypatch: pytest.MonkeyPatch, errors: list[Exception]
) -> None:
    """In turn, the errors of the progress calls; a rejected call has arrived."""
    failed: list[tuple[float, Exception]] = []

    def fail(_style_id: int, _progress: Progress) -> None:
        error = errors[len(failed) % len(errors)]
        failed.append((world.clock.monotonic(), error))
        raise error

    called: list[float] = []
    completed = world.notifier.completed
    monkeypatch.setattr(world.notifier, "progress", fail)

    def complete(*call: Any) -> None:
        called.append(world.clock.monotonic())
        completed(*call)

    monkeypatch.setattr(world.notifier, "completed", complete)
    assert world.worker()(a_task(), StopSignal()) == Ack()
    given_up = [at for at, error in failed if error is SILENCE]
    assert len(failed) > 2 * len(errors)
    if given_up:
        assert called == [given_up[-1] + CONFIG.in_flight_seconds]
    else:
        (at,) = called
        assert at < failed[-1][0] + CONFIG.progress_every


def test_the_next_worker_waits_for_a_progress_call_in_flight(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, config = StopSignal(), replace(CONFIG, in_flight_seconds=6.0)
    progress_calls: list[float] = []
    completions: list[float] = []
    completed, put = world.notifier.completed, world.blobs.put

    def lose(*_call: Any) -> None:
        progress_calls.append(world.clock.monotonic())
        raise NotifierUnavailable("no response")

    def complete(*call: Any) -> None:
        completions.append(world.clock.monotonic())
        completed(*call)

    def put_and_stop(at: Location, *content: Any, **options: Any) -> str:
        if at == KEYS.weights(7):
            stop.request(StopReason.SHUTDOWN, deadline=world.clock.monotonic() + 4.0)
        return put(at, *content, **options)

    monkeypatch.setattr(world.notifier, "progress", lose)
    monkeypatch.setattr(world.notifier, "completed", complete)
    monkeypatch.setattr(world.blobs, "put", put_and_stop)
    assert world.worker(config=config)(a_task(), stop) == Requeue()
    assert world.job().state is JobState.NOTIFYING
    assert world.until_settled(a_task()) == Ack()
    (completion,) = completions
    assert completion >= progress_calls[-1] + config.in_flight_seconds


def test_shutdown_leaves_a_checkpoint_and_hands_the_job_over(world: World) -> None:
    stop = StopSignal()
    trainer = Watched(world, 40, lambda: stop.request(StopReason.SHUTDOWN))
    assert world.worker(trainer=trainer)(a_task(), stop) == Requeue()
    job = world.job()
    assert job.state is JobState.INTERRUPTED
    assert job.checkpoint is not None
    assert job.checkpoint.step == 40
    assert job.failures == 0
    assert world.notifier.final == []

    assert world.worker()(a_task(), StopSignal()) == Ack()
    starts = [e for e in world.events if isinstance(e, JobStarted)]
    assert [e.resumed_from and e.resumed_from.step for e in starts] == [None, 40]
    steps = [e.progress.current_step for e in world.events if isinstance(e, ProgressMade)]
    assert steps == list(range(1, 76)), "no step is lost and none is done twice"


def test_a_shutdown_right_after_a_checkpoint_stores_no_second_one(world: World) -> None:
    class Counting(MemoryBlobStore):
        def put(self, at: Location, data: bytes, **how: Any) -> str:
            puts.append(at)
            return world.blobs.put(at, data, **how)

        def get(self, at: Location, **how: Any) -> Any:
            return world.blobs.get(at, **how)

    stop = StopSignal()
    puts: list[Location] = []
    trainer = Watched(world, 30, lambda: stop.request(StopReason.SHUTDOWN))
    assert world.worker(blobs=Counting(), trainer=trainer)(a_task(), stop) == Requeue()
    assert len([at for at in puts if "checkpoints" in at.key]) == 1
    job = world.job()
    assert job.checkpoint is not None
    assert job.checkpoint.step == 30


@pytest.mark.parametrize(
    ("seconds_left", "away", "tried", "step"),
    [(5.5, False, 1, 30), (5.5, True, 1, None), (100.0, False, 2, 40)],
)
def test_a_checkpoint_longer_than_the_shutdown_timeout_is_not_started(
    world: World, seconds_left: float, away: bool, tried: int, step: int | None
) -> None:
    """A step takes one second of the shutdown timeout, a checkpoint five."""

    class Slow(MemoryBlobStore):
        def put(self, at: Location, data: bytes, **how: Any) -> str:
            if "checkpoints" in at.key:
                puts.append(at)
                world.clock.advance(5.0)
                if away:
                    raise BlobUnavailable("503")
            return world.blobs.put(at, data, **how)

        def get(self, at: Location, **how: Any) -> Any:
            return world.blobs.get(at, **how)

    stop = StopSignal()
    puts: list[Location] = []

    def soon() -> None:
        stop.request(StopReason.SHUTDOWN, deadline=world.clock.monotonic() + seconds_left)

    worker = world.worker(blobs=Slow(), trainer=Watched(world, 40, soon))
    assert worker(a_task(), stop) == Requeue()
    job = world.job()
    assert job.state is JobState.INTERRUPTED
    assert (job.checkpoint and job.checkpoint.step) == step
    assert len(puts) == tried


def test_observers_get_the_duration_of_each_phase(world: World) -> None:
    """Ten steps of a second each: the first one is counted separately."""
    assert world.worker()(a_task(epochs=10, batch_size=10), StopSignal()) == Ack()
    parts = {event.part: event.seconds for event in world.events if isinstance(event, PartTimed)}
    assert parts == {
        "fetch": 0.0, "encode": 0.0, "first step": 1.0, "steps": 9.0, "checkpoints": 0.0
    }  # fmt: skip
