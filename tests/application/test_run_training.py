"""The way of one task: alone, cancelled, stopped, taken over, refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from adapters.memory import MemoryBlobStore, MemoryReporter, MemorySession, MemoryTrainer
from application.lease import Lease, LeaseTerms
from application.ports import (
    Blob,
    BlobDenied,
    BlobUnavailable,
    EpochRecord,
    NotifierRefused,
    NotifierUnavailable,
    PreconditionFailed,
    StyleReport,
    TrainerBroken,
    TrainingSession,
)
from application.seats import Seats
from application.settlement import DeadLetter, Done, HandBack, RetryLater
from application.stop import StopReason, StopSignal
from application.style_report import PATIENCE
from domain.events import CheckpointSaved, JobStarted, ProgressMade
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.job import JobState
from domain.location import Location
from domain.parameters import RequestedParameters
from domain.progress import Progress
from tests.application.world import LAYOUT, RULES, TASK_ID, Crash, World, a_task


@pytest.fixture
def world() -> World:
    return World()


class Watched(MemoryTrainer):
    """A trainer that does something of the test's before one of its steps."""

    def __init__(self, world: World, before: int, action: Any) -> None:
        super().__init__(world.clock)
        self._before, self._action = before, action

    def open(self, plan: Any, resume: bytes | None) -> Any:
        context = super().open(plan, resume)
        enter = context.__enter__

        class Entered:
            def __enter__(inner) -> TrainingSession:  # noqa: N805 - two selves are at hand
                session = enter()
                advance, steps = session.advance, [0]

                def watched() -> Any:
                    steps[0] += 1
                    if steps[0] == self._before:
                        self._action()
                    return advance()

                session.advance = watched  # type: ignore[method-assign]  # the test's own seam
                return session

            def __exit__(inner, *error: Any) -> Any:  # noqa: N805 - as above
                return context.__exit__(*error)

        return Entered()


def stored_epochs(world: World, kind: str = "checkpoints") -> list[int]:
    stored = world.blobs.list("models", f"jobs/{TASK_ID}/{kind}/")
    return [int(at.name.split("_")[1].removesuffix(".safetensors")) for at in stored]


def test_a_task_becomes_a_style_that_is_announced_once(world: World) -> None:
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert world.job().state is JobState.COMPLETED
    (call,) = world.notifier.final
    assert (call.kind, call.style_id) == ("completed", 7)
    assert call.idempotency_key == f"{TASK_ID}:complete"
    artifact, metric = call.payload  # type: ignore[misc]  # a completed call carries both
    assert artifact.location == Location("models", "models/style_7.safetensors")
    assert artifact.size == len(world.weights())
    assert (metric.epochs, metric.steps) == (25, 75)
    assert world.leases() == []


def test_checkpoints_are_saved_every_ten_epochs_and_at_the_end(world: World) -> None:
    world.worker()(a_task(), StopSignal())
    saved = [e.checkpoint.epoch for e in world.events if isinstance(e, CheckpointSaved)]
    assert saved == [10, 20, 25]


@pytest.mark.parametrize(("keep", "left"), [(0, []), (1, [25]), (2, [20, 25]), (7, [10, 20, 25])])
def test_a_finished_job_keeps_the_checkpoints_that_the_rules_want(
    world: World, keep: int, left: list[int]
) -> None:
    rules = replace(RULES, keep_checkpoints=keep)
    world.worker(rules=rules)(a_task(), StopSignal())
    assert stored_epochs(world) == left


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tenth epoch is measured, and epoch 20 is the best."""
    plain = MemorySession.history.fget

    def history(session: MemorySession) -> list[EpochRecord]:
        return [
            replace(record, evaluation_loss=abs(record.epoch - 20) + 0.1)
            if record.epoch % 10 == 0 or record.epoch == 25
            else record
            for record in plain(session)
        ]

    monkeypatch.setattr(MemorySession, "history", property(history))


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(("keep", "left"), [(0, []), (1, [20, 25]), (2, [20, 25])])
def test_the_best_epochs_checkpoint_is_kept_beside_the_latest(
    world: World, keep: int, left: list[int]
) -> None:
    world.worker(rules=replace(RULES, keep_checkpoints=keep))(a_task(), StopSignal())
    assert stored_epochs(world) == left
    assert stored_epochs(world, "styles") == left
    metric = world.job().metric
    assert metric is not None
    assert metric.best_epoch == 20


@pytest.mark.usefixtures("measured")
def test_a_best_epoch_without_a_checkpoint_changes_nothing(world: World) -> None:
    rules = replace(RULES, keep_checkpoints=1, checkpoint_every=15)
    world.worker(rules=rules)(a_task(), StopSignal())
    assert stored_epochs(world) == [25]


@pytest.mark.usefixtures("measured")
def test_the_redelivery_knows_the_best_epoch_from_the_journal(world: World) -> None:
    world.worker(rules=replace(RULES, keep_checkpoints=None))(a_task(), StopSignal())
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert stored_epochs(world) == [20, 25]


def test_a_crash_before_the_tidying_is_made_up_for_by_the_redelivery(world: World) -> None:
    world.worker(rules=replace(RULES, keep_checkpoints=None))(a_task(), StopSignal())
    assert stored_epochs(world) == [10, 20, 25]
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert stored_epochs(world) == [25]


@pytest.mark.parametrize("error", [BlobUnavailable("503"), BlobDenied("403")])
def test_old_checkpoints_that_cannot_be_listed_are_left(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(_bucket: str, _prefix: str) -> list[Location]:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(world.blobs, "list", refuse)
        assert world.worker()(a_task(), StopSignal()) == Done()
    assert stored_epochs(world) == [10, 20, 25]


def test_an_unfinished_job_keeps_every_checkpoint(world: World) -> None:
    stop = StopSignal()
    trainer = Watched(world, 70, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=trainer)(a_task(), stop)
    assert stored_epochs(world) == [10, 20, 23]
    assert stored_epochs(world, "styles") == [10, 20], "there is no time for one in a shutdown"


def test_the_style_of_each_checkpoint_lies_beside_it(world: World) -> None:
    world.worker(rules=replace(RULES, keep_checkpoints=None))(a_task(), StopSignal())
    assert stored_epochs(world, "styles") == [10, 20, 25]
    styles = [world.blobs.get(LAYOUT.style_at(TASK_ID, epoch)).data for epoch in (10, 20, 25)]
    assert styles[-1] == world.weights()
    assert len(set(styles)) == 3


@pytest.mark.parametrize("error", [BlobDenied("no way"), BlobUnavailable("no way")])
def test_a_style_beside_a_checkpoint_that_cannot_be_stored_costs_nothing_else(
    world: World, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    class Denying:
        def __getattr__(self, name: str) -> Any:
            def put(at: Location, *content: Any, **options: Any) -> str:
                if "/styles/" in at.key:
                    raise error
                return world.blobs.put(at, *content, **options)

            return put if name == "put" else getattr(world.blobs, name)

    rules = replace(RULES, keep_checkpoints=None)
    assert world.worker(blobs=Denying(), rules=rules)(a_task(), StopSignal()) == Done()
    assert stored_epochs(world) == [10, 20, 25]
    assert "the checkpoint's style is not stored: no way" in caplog.text


def test_progress_is_told_at_its_period_and_never_after_the_end(world: World) -> None:
    world.worker()(a_task(), StopSignal())
    kinds = [call.kind for call in world.notifier.calls]
    assert kinds[-1] == "completed"
    told = [c.payload for c in world.notifier.calls if isinstance(c.payload, Progress)]
    assert len(told) == 75 // 7
    assert [p.current_step for p in told] == sorted(p.current_step for p in told)
    assert all(p.steps_per_second == pytest.approx(1.0, rel=0.2) for p in told)
    assert told[-1].loss == 1 / (1 + told[-1].current_epoch)


def test_no_progress_is_told_before_its_speed_is_known(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.worker(rules=replace(RULES, progress_every=0.25))(a_task(), StopSignal())
    told = [c.payload for c in world.notifier.calls if isinstance(c.payload, Progress)]
    assert told[0].current_step == 2
    assert None not in {p.steps_per_second for p in told}
    made = [e.progress for e in world.events if isinstance(e, ProgressMade)]
    assert [p.steps_per_second is None for p in made[:3]] == [True, False, False]
    assert caplog.messages == []


def test_steps_that_are_run_again_are_told_with_the_speed_of_now(world: World) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    world.worker(trainer=Watched(world, 55, fail))(a_task(), StopSignal())
    world.notifier.calls.clear()
    slower = MemoryTrainer(world.clock, step_seconds=5.0)
    assert world.worker(trainer=slower)(a_task(), StopSignal()) == Done()
    told = [c.payload for c in world.notifier.calls if isinstance(c.payload, Progress)]
    assert (told[0].current_step, told[0].redone) == (54, 22)
    assert all(p.steps_per_second == pytest.approx(0.2) for p in told)


@pytest.mark.parametrize("error", [NotifierUnavailable("502"), NotifierRefused("404")])
def test_progress_that_is_not_delivered_is_no_error(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fail(_style_id: int, _progress: Progress) -> None:
        raise error

    monkeypatch.setattr(world.notifier, "progress", fail)
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert {(r.levelname, r.message.split(":")[0]) for r in caplog.records} == {
        ("WARNING", "progress was not delivered, the next will be newer")
    }


def test_the_final_call_waits_until_progress_that_was_given_up_can_no_longer_arrive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up: list[float] = []

    def give_up(_style_id: int, _progress: Progress) -> None:
        given_up.append(world.clock.monotonic())
        raise NotifierUnavailable("no answer within 5 s")

    called: list[float] = []
    completed = world.notifier.completed
    monkeypatch.setattr(world.notifier, "progress", give_up)
    monkeypatch.setattr(
        world.notifier,
        "completed",
        lambda *call: (called.append(world.clock.monotonic()), completed(*call)),
    )
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert called == [given_up[-1] + RULES.in_transit]


def test_a_message_that_comes_again_changes_nothing(world: World) -> None:
    world.worker()(a_task(), StopSignal())
    before, opened = world.blobs.blobs, world.trainer.opened
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert world.blobs.blobs == before
    assert world.trainer.opened == opened
    assert len(world.notifier.final) == 1


def test_a_report_lies_beside_the_journal(world: World) -> None:
    world.worker()(a_task(), StopSignal())
    assert LAYOUT.report(TASK_ID, "report.html") in world.blobs.blobs


def test_a_report_tells_how_long_the_job_took(world: World) -> None:
    took: list[float] = []

    class Noting:
        def render(self, report: StyleReport) -> list[Any]:
            took.append(report.seconds)
            return []

    world.clock.advance(1000.0)
    world.worker(reporter=Noting())(a_task(), StopSignal())
    assert took == [75.0]


def test_a_report_that_fails_does_not_cost_the_style(world: World) -> None:
    class Broken:
        def render(self, report: Any) -> Any:
            raise RuntimeError(f"no ink for {report.task.style_id}")

    assert world.worker(reporter=Broken())(a_task(), StopSignal()) == Done()
    assert world.job().state is JobState.COMPLETED


class AwayAfter:
    """A store that is away for ``seconds``, from the first write of a kind on."""

    def __init__(self, world: World, first: Callable[[Location, bytes], bool], seconds: float):
        self._world, self._first, self._seconds = world, first, seconds
        self._until: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world.blobs, name)

    def put(self, at: Location, data: bytes, **options: Any) -> str:
        now = self._world.clock.monotonic()
        if self._until is None and self._first(at, data):
            self._until = now + self._seconds
        if self._until is not None and now < self._until:
            raise BlobUnavailable("503")
        return self._world.blobs.put(at, data, **options)


def of_the_report(at: Location, _data: bytes) -> bool:
    return at == LAYOUT.report(TASK_ID, "report.html")


def test_a_report_waits_for_a_store_that_is_away_for_a_moment(world: World) -> None:
    blobs = AwayAfter(world, of_the_report, seconds=20.0)
    assert world.worker(blobs=blobs)(a_task(), StopSignal()) == Done()
    assert LAYOUT.report(TASK_ID, "report.html") in world.blobs.blobs


def test_a_report_is_left_out_where_the_store_stays_away(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    blobs = AwayAfter(world, of_the_report, seconds=PATIENCE + 10.0)
    assert world.worker(blobs=blobs)(a_task(), StopSignal()) == Done()
    assert LAYOUT.report(TASK_ID, "report.html") not in world.blobs.blobs
    assert f"no report for task {TASK_ID}, the store is away: 503" in caplog.messages
    assert "ERROR" not in {record.levelname for record in caplog.records}


def test_a_device_that_breaks_over_the_report_is_no_business_of_the_jobs(world: World) -> None:
    class Breaking(MemoryReporter):
        def render(self, report: Any) -> Any:
            raise TrainerBroken("the card answers no more")

    settlement = world.worker(reporter=Breaking())(a_task(), StopSignal())
    assert isinstance(settlement, RetryLater)
    assert settlement.broken
    assert (world.job().state, world.job().setbacks) == (JobState.ANNOUNCING, 0)
    opened = world.trainer.opened
    assert world.until_settled(a_task()) == Done()
    assert world.trainer.opened == opened


@pytest.mark.parametrize("state", [JobState.UPLOADING, JobState.ANNOUNCING])
def test_the_end_of_the_training_is_recorded_once_the_store_is_back(
    world: World, state: JobState
) -> None:
    def of_the_end(at: Location, data: bytes) -> bool:
        return at == LAYOUT.journal(TASK_ID) and f'"{state}"'.encode() in data

    blobs = AwayAfter(world, of_the_end, seconds=100.0)
    assert world.worker(blobs=blobs)(a_task(), StopSignal()) == Done()
    assert world.job().attempt == 1


def test_a_worker_that_dies_of_the_report_has_trained_the_style(world: World) -> None:
    class Deadly:
        def render(self, report: Any) -> Any:
            raise Crash

    with pytest.raises(Crash):
        world.worker(reporter=Deadly())(a_task(), StopSignal())
    assert world.job().setbacks == 0
    opened = world.trainer.opened
    assert world.until_settled(a_task()) == Done()
    assert world.job().state is JobState.COMPLETED
    assert world.trainer.opened == opened


def test_a_worker_that_is_asked_to_stop_draws_no_report(world: World) -> None:
    stop = StopSignal()
    last = world.worker()
    uploading = replace(last, blobs=Stopping(world.blobs, stop, LAYOUT.weights(7)))
    uploading(a_task(), stop)
    assert world.weights()
    assert LAYOUT.report(TASK_ID, "report.html") not in world.blobs.blobs
    assert world.until_settled(a_task()) == Done()
    assert len(world.notifier.final) == 1


class Stopping:
    """A store at which a stop is asked for as soon as a blob lies there."""

    def __init__(self, blobs: MemoryBlobStore, stop: StopSignal, at: Location) -> None:
        self._blobs, self._stop, self._at = blobs, stop, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    def put(self, at: Location, *content: Any, **options: Any) -> str:
        tag = self._blobs.put(at, *content, **options)
        if at == self._at:
            self._stop.request(StopReason.SHUTDOWN)
        return tag


def test_shutdown_leaves_a_checkpoint_and_hands_the_job_over(world: World) -> None:
    stop = StopSignal()
    trainer = Watched(world, 40, lambda: stop.request(StopReason.SHUTDOWN))
    assert world.worker(trainer=trainer)(a_task(), stop) == HandBack()
    job = world.job()
    assert job.state is JobState.INTERRUPTED
    assert job.checkpoint is not None
    assert job.checkpoint.step == 40
    assert job.setbacks == 0
    assert world.notifier.final == []

    assert world.worker()(a_task(), StopSignal()) == Done()
    starts = [e for e in world.events if isinstance(e, JobStarted)]
    assert [e.resumed_from and e.resumed_from.step for e in starts] == [None, 40]
    steps = [e.progress.current_step for e in world.events if isinstance(e, ProgressMade)]
    assert steps == list(range(1, 76)), "no step is lost and none is done twice"


@pytest.mark.parametrize(
    ("seconds_left", "away", "tried", "step"),
    [(5.5, False, 1, 30), (5.5, True, 1, None), (100.0, False, 2, 40)],
)
def test_a_checkpoint_that_does_not_fit_into_the_grace_is_not_begun(
    world: World, seconds_left: float, away: bool, tried: int, step: int | None
) -> None:
    """The step takes one second of the grace, a checkpoint five."""

    class Slow(MemoryBlobStore):
        def put(inner, at: Location, data: bytes, **how: Any) -> str:  # noqa: N805 - two selves
            if "checkpoints" in at.key:
                puts.append(at)
                world.clock.advance(5.0)
                if away:
                    raise BlobUnavailable("503")
            return world.blobs.put(at, data, **how)

        def get(inner, at: Location, **how: Any) -> Any:  # noqa: N805 - as above
            return world.blobs.get(at, **how)

    stop, puts = StopSignal(), []

    def soon() -> None:
        stop.request(StopReason.SHUTDOWN, deadline=world.clock.monotonic() + seconds_left)

    worker = world.worker(blobs=Slow(), trainer=Watched(world, 40, soon))
    assert worker(a_task(), stop) == HandBack()
    job = world.job()
    assert job.state is JobState.INTERRUPTED
    assert (job.checkpoint and job.checkpoint.step) == step
    assert len(puts) == tried


def test_a_resumed_style_equals_an_undisturbed_one(world: World) -> None:
    undisturbed = World()
    undisturbed.worker()(a_task(), StopSignal())
    stop = StopSignal()
    trainer = Watched(world, 33, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=trainer)(a_task(), stop)
    world.until_settled(a_task())
    assert world.weights() == undisturbed.weights()


def test_the_parameters_are_settled_once(world: World) -> None:
    """Though another count of pictures would have other defaults by now."""
    task = replace(a_task(12), requested=RequestedParameters({"batch_size": 4}))
    stop = StopSignal()
    trainer = Watched(world, 40, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=trainer)(task, stop)
    settled = world.job().parameters
    world.blobs.delete(task.images[0])
    assert world.until_settled(task) == Done()
    assert world.job().state is JobState.COMPLETED
    assert world.job().parameters == settled


def test_the_trainer_is_told_what_the_task_says(world: World) -> None:
    plans = []

    class Noting(MemoryTrainer):
        def open(self, plan: Any, resume: bytes | None) -> Any:
            plans.append(plan)
            return super().open(plan, resume)

    task = replace(a_task(), created_at=world.clock.now())
    world.worker(trainer=Noting(world.clock))(task, StopSignal())
    (plan,) = plans
    assert (plan.style_id, plan.tags, plan.created_at) == (7, task.tags, task.created_at)


def test_a_cancelled_job_stops_at_the_next_look_and_the_backend_is_told(world: World) -> None:
    def cancel() -> None:
        world.blobs.put(LAYOUT.cancellation(TASK_ID), b"{}")

    trainer = Watched(world, 20, cancel)
    assert world.worker(trainer=trainer)(a_task(), StopSignal()) == Done()
    job = world.job()
    assert job.state is JobState.CANCELLED
    assert job.progress is not None
    assert job.progress.current_step <= 20 + RULES.cancel_poll
    (call,) = world.notifier.final
    assert isinstance(call.payload, Failure)
    assert call.payload.code is FailureCode.CANCELLED


def test_a_job_cancelled_while_queued_is_not_begun(world: World) -> None:
    world.blobs.put(LAYOUT.cancellation(TASK_ID), b"{}")
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert world.job().state is JobState.CANCELLED
    assert world.trainer.opened == 0


@pytest.mark.parametrize("error", [BlobUnavailable("503"), BlobDenied("403")])
def test_where_nobody_can_tell_whether_a_job_is_cancelled_it_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """S3 denies what is missing to those who may not list."""
    plain = world.blobs.get

    def get(at: Location, **options: Any) -> Blob:
        if at == LAYOUT.cancellation(TASK_ID):
            raise error
        return plain(at, **options)

    monkeypatch.setattr(world.blobs, "get", get)
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert world.job().state is JobState.COMPLETED


def test_too_few_usable_pictures_fail_with_reasons_for_the_artist(world: World) -> None:
    world.blobs.put(Location("media", "7/03.jpg"), b"broken")
    world.blobs.delete(Location("media", "7/04.jpg"))
    world.blobs.put(Location("media", "7/05.jpg"), b"x" * (10 * 1024**2 + 1))
    assert world.worker()(a_task(), StopSignal()) == Done()
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
    assert call.idempotency_key == f"{TASK_ID}:failed"


def test_pictures_of_which_none_is_there_are_the_artists_matter(world: World) -> None:
    gone = tuple(Location("media", f"gone/{n}.jpg") for n in range(10))
    assert world.worker()(replace(a_task(), images=gone), StopSignal()) == Done()
    failure = world.job().failure
    assert failure is not None
    assert failure.code is FailureCode.LOW_QUALITY_DATA


def test_a_picture_listed_several_times_is_one_picture(world: World) -> None:
    task = a_task(pictures=9)
    repeated = replace(task, images=(*task.images, *task.images[:1] * 3))
    assert world.worker()(repeated, StopSignal()) == Done()
    (call,) = world.notifier.final
    assert isinstance(call.payload, Failure)
    assert call.payload.code is FailureCode.LOW_QUALITY_DATA
    assert "00.jpg: it is listed 4 times, and counts once" in call.payload.message


def test_captions_lie_beside_their_pictures(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.blobs.put(Location("media", "7/00.txt"), "a  red\nfox ".encode("utf-8-sig"))
    world.blobs.put(Location("media", "7/01.txt"), b"\xff\xfe\xff")
    world.blobs.put(Location("media", "7/02.txt"), b"red " * 5000)
    plans = []

    class Noting(MemoryTrainer):
        def open(self, plan: Any, resume: bytes | None) -> Any:
            plans.append(plan)
            return super().open(plan, resume)

    world.worker(trainer=Noting(world.clock))(a_task(), StopSignal())
    captions = [picture.caption for picture in plans[0].pictures[:4]]
    assert captions == ["a red fox", None, None, None]
    assert [line for line in caplog.messages if "caption" in line] == [
        "the caption 01.txt is left out: it is not UTF-8; save it as UTF-8",
        "the caption 02.txt is left out: it is larger than 16 KB",
    ]


def test_a_picture_whose_caption_is_denied_has_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 denies what is missing to those who may not list."""
    plain = world.blobs.get

    def get(at: Location, **options: Any) -> Blob:
        if at.name.endswith(".txt"):
            raise BlobDenied(f"403 for {at}")
        return plain(at, **options)

    monkeypatch.setattr(world.blobs, "get", get)
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert world.job().state is JobState.COMPLETED


def test_a_picture_with_so_long_a_key_that_no_caption_can_have_it_is_used(world: World) -> None:
    longest = Location("media", "7/" + "k" * 1022)
    world.blobs.put(longest, b"a picture")
    task = a_task(pictures=9)
    outcome = world.worker()(replace(task, images=(*task.images, longest)), StopSignal())
    assert outcome == Done()
    assert world.job().state is JobState.COMPLETED


def test_a_live_lease_of_another_worker_puts_the_message_aside(world: World) -> None:
    inner: list[Any] = []

    def meanwhile() -> None:
        began = world.clock.monotonic()
        inner.append(world.worker()(a_task(), StopSignal()))
        assert world.clock.monotonic() == began, "at once"

    outcome = world.worker(trainer=Watched(world, 30, meanwhile))(a_task(), StopSignal())
    assert outcome == Done()
    (put_aside,) = inner
    assert isinstance(put_aside, RetryLater)
    assert 0 < put_aside.delay <= RULES.lease.seconds
    assert len(world.notifier.final) == 1
    assert world.trainer.opened == 0


def test_of_two_workers_that_find_no_lease_one_gets_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, plain = world.worker(), world.blobs.get

    def get(at: Location, **options: Any) -> Blob:
        try:
            return plain(at, **options)
        finally:
            if at == LAYOUT.lease(TASK_ID):
                monkeypatch.undo()
                Lease(world.blobs, at, "theirs", RULES.lease, world.clock).acquire(StopSignal())

    monkeypatch.setattr(world.blobs, "get", get)
    outcome = ours(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater)
    assert outcome.elsewhere
    assert 0 < outcome.delay <= RULES.lease.seconds
    assert world.trainer.opened == 0


def test_a_job_that_another_worker_ends_before_the_lease_is_ours_is_left_as_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, plain = world.worker(), world.blobs.get

    def get(at: Location, **options: Any) -> Blob:
        if at == LAYOUT.lease(TASK_ID):
            monkeypatch.undo()
            assert world.worker()(a_task(), StopSignal()) == Done()
        return plain(at, **options)

    monkeypatch.setattr(world.blobs, "get", get)
    assert ours(a_task(), StopSignal()) == Done()
    assert world.trainer.opened == 1
    assert len(world.notifier.final) == 1
    assert world.leases() == []


def test_a_longer_term_than_ours_is_respected(world: World) -> None:
    """Workers may be set differently: what looks expired to us may not have to be renewed yet."""
    patient = LeaseTerms(20 * RULES.lease.seconds)
    lease = Lease(world.blobs, LAYOUT.lease(TASK_ID), "patient", patient, world.clock)
    with lease.held(StopSignal(), over=lambda: False):
        world.clock.advance(10.0)
        outcome = world.worker()(a_task(), StopSignal())
        assert isinstance(outcome, RetryLater)
        assert lease.firm
        world.clock.jump(-10_000.0)  # expires in the far future, so it is watched
        assert isinstance(world.worker()(a_task(), StopSignal()), RetryLater)
        assert lease.firm
    assert world.trainer.opened == 0


def test_a_stop_is_heard_while_a_lease_is_watched(world: World) -> None:
    Lease(world.blobs, LAYOUT.lease(TASK_ID), "dead", RULES.lease, world.clock).acquire(
        StopSignal()
    )
    world.clock.advance(2 * RULES.lease.seconds)
    stop, began = StopSignal(), world.clock.monotonic()
    with world.clock.every(2.0, lambda: stop.request(StopReason.SHUTDOWN)):
        assert world.worker()(a_task(), stop) == HandBack()
    assert world.clock.monotonic() - began <= 3.0
    lease = json.loads(world.blobs.get(LAYOUT.lease(TASK_ID)).data)
    assert lease["owner"] == "dead", "it was not watched for long enough to be taken over"


def test_a_lease_that_cannot_be_removed_is_removed_by_the_redelivery(world: World) -> None:
    class Keeping:
        def __getattr__(self, name: str) -> Any:
            def fail(at: Location) -> None:
                raise BlobUnavailable(f"503 for {at}")

            return fail if name == "delete" else getattr(world.blobs, name)

    outcome = world.worker(blobs=Keeping())(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater), "an acknowledged message would leave it for ever"
    assert world.job().state is JobState.COMPLETED
    assert len(world.leases()) == 1
    assert world.until_settled(a_task()) == Done()
    assert world.leases() == []
    assert len(world.notifier.final) == 1


def test_a_store_that_lets_nobody_delete_costs_nobody_the_job(world: World) -> None:
    class Keeping:
        def __getattr__(self, name: str) -> Any:
            def refuse(at: Location) -> None:
                raise BlobDenied(f"403 for {at}")

            return refuse if name == "delete" else getattr(world.blobs, name)

    assert world.worker(blobs=Keeping())(a_task(), StopSignal()) == Done()
    assert world.worker(blobs=Keeping())(a_task(), StopSignal()) == Done()
    assert len(world.notifier.final) == 1


def test_a_worker_that_lost_its_lease_writes_and_announces_nothing(world: World) -> None:
    def steal() -> None:
        world.blobs.put(
            LAYOUT.lease(TASK_ID),
            json.dumps(
                {"owner": "thief", "expires_at": "2026-01-01T00:10:00+00:00", "revision": 99}
            ).encode(),
        )

    outcome = world.worker(trainer=Watched(world, 35, steal))(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater)
    assert outcome.elsewhere
    steps = [e.progress.current_step for e in world.events if isinstance(e, ProgressMade)]
    assert max(steps) <= 35 + RULES.lease.renew_every
    assert world.notifier.final == []
    assert LAYOUT.weights(7) not in world.blobs.blobs


def test_the_lease_is_renewed_before_what_is_dear_to_repeat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ages: list[timedelta] = []
    put, completed = world.blobs.put, world.notifier.completed

    def note_its_age() -> None:
        lease = json.loads(world.blobs.get(LAYOUT.lease(TASK_ID)).data)
        term = timedelta(seconds=RULES.lease.seconds)
        ages.append(world.clock.now() + term - datetime.fromisoformat(lease["expires_at"]))

    def noting_put(at: Location, *content: Any, **options: Any) -> str:
        if at == LAYOUT.weights(7):
            note_its_age()
            world.clock.advance(1.0)
        return put(at, *content, **options)

    def noting_completed(*content: Any) -> None:
        note_its_age()
        completed(*content)

    monkeypatch.setattr(world.blobs, "put", noting_put)
    monkeypatch.setattr(world.notifier, "completed", noting_completed)
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert ages == [timedelta(0), timedelta(0)]


def test_who_ends_a_job_leaves_the_lease_that_has_become_anothers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, plain = LAYOUT.lease(TASK_ID), world.notifier.completed

    def completed(*content: Any) -> None:
        plain(*content)
        world.blobs.put(at, b"theirs")

    monkeypatch.setattr(world.notifier, "completed", completed)
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert world.blobs.get(at).data == b"theirs"


def test_a_worker_that_cannot_renew_its_lease_falls_silent_before_another_may_speak(
    world: World,
) -> None:
    told: list[float] = []
    away: list[bool] = []

    class CutOff:
        def __getattr__(self, name: str) -> Any:
            def put(at: Location, *content: Any, **options: Any) -> str:
                if away and at == LAYOUT.lease(TASK_ID):
                    raise BlobUnavailable("no way to the store")
                return world.blobs.put(at, *content, **options)

            return put if name == "put" else getattr(world.blobs, name)

    class Noting:
        def __getattr__(self, name: str) -> Any:
            def call(*content: Any) -> None:
                told.append(world.clock.monotonic())

            return call

    def lose_the_way() -> None:
        away.append(True)
        began.append(world.clock.monotonic())
        world.clock.advance(10 * RULES.lease.seconds)
        away.clear()

    began: list[float] = []
    rules = replace(RULES, progress_every=1.0)
    world.worker(
        trainer=Watched(world, 20, lose_the_way), notifier=Noting(), blobs=CutOff(), rules=rules
    )(a_task(), StopSignal())
    silent = [moment for moment in told if 0 < moment - began[0] < 10 * RULES.lease.seconds]
    assert silent, "it speaks on while the lease is certainly its own"
    assert max(silent) - began[0] <= RULES.lease.takes_to_lose
    assert told[-1] > began[0] + 10 * RULES.lease.seconds, "and again once it is"


def test_a_worker_that_lost_its_lease_tells_no_progress_however_long_its_step_takes(
    world: World,
) -> None:
    told: list[int] = []

    def lose_it_in_mid_step() -> None:
        world.blobs.put(
            LAYOUT.lease(TASK_ID),
            b'{"owner": "thief", "expires_at": "2100-01-01T00:00:00+00:00", "revision": 99}',
        )
        world.clock.advance(RULES.lease.renew_every)
        told.append(len(world.notifier.calls))
        world.clock.advance(10 * RULES.lease.seconds)
        told.append(len(world.notifier.calls))

    trainer = Watched(world, 18, lose_it_in_mid_step)
    rules = replace(RULES, progress_every=1.0)
    world.worker(trainer=trainer, rules=rules)(a_task(), StopSignal())
    assert told[0] > 0
    assert told[1] == told[0]


def test_the_lease_of_a_dead_worker_is_taken_over(world: World) -> None:
    world.blobs.put(
        LAYOUT.lease(TASK_ID),
        json.dumps(
            {"owner": "dead", "expires_at": "2025-12-31T23:59:59+00:00", "revision": 4}
        ).encode(),
    )
    assert world.worker()(a_task(), StopSignal()) == Done()


def test_a_clock_that_jumps_ahead_takes_no_lease_from_the_living(world: World) -> None:
    inner: list[Any] = []

    def meanwhile() -> None:
        world.clock.jump(10_000.0)
        inner.append(world.worker()(a_task(), StopSignal()))
        world.clock.jump(-10_000.0)

    world.worker(trainer=Watched(world, 30, meanwhile))(a_task(), StopSignal())
    assert isinstance(inner[0], RetryLater)
    assert len(world.notifier.final) == 1


def test_a_job_that_keeps_crashing_is_given_up(world: World) -> None:
    def crash() -> None:
        raise RuntimeError("a defect")

    for retry in range(RULES.most_setbacks):
        outcome = world.worker(trainer=Watched(world, 2, crash))(a_task(), StopSignal(), retry)
        assert isinstance(outcome, RetryLater)
        assert outcome.reason == "RuntimeError: a defect"
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert world.job().state is JobState.FAILED
    (call,) = world.notifier.final
    assert isinstance(call.payload, Failure)
    assert call.payload.code is FailureCode.TRAINING_FAILED


def test_a_job_that_waits_for_a_seat_has_no_part_in_its_workers_crashes(world: World) -> None:
    """Else the one whose training kills the worker would take the others with it."""

    class Full(Seats):
        @contextmanager
        def taken(self, kind: Any, stop: StopSignal, waiting: Any) -> Iterator[None]:
            waiting()
            raise Crash
            yield

    for _ in range(RULES.most_setbacks + 1):
        with pytest.raises(Crash):
            world.worker(seats=Full())(a_task(), StopSignal())
        world.clock.advance(3 * RULES.lease.seconds)
    assert world.job().waits
    assert world.job().setbacks == 0
    assert world.until_settled(a_task()) == Done()
    assert world.job().state is JobState.COMPLETED


def test_a_job_that_has_broken_off_among_others_trains_alone(world: World) -> None:
    kinds: list[Any] = []

    class Noting(Seats):
        def taken(self, kind: Any, stop: StopSignal, waiting: Any) -> Any:
            kinds.append(kind)
            return super().taken(kind, stop, waiting)

    class Crashing(Watched):
        def kind(self, _parameters: Any) -> str:
            return "rank 8"

    def crash() -> None:
        raise Crash

    for _ in range(RULES.setbacks_in_company + 1):
        trainer = Crashing(world, 2, crash)
        with pytest.raises(Crash):
            world.worker(trainer=trainer, seats=Noting(8))(a_task(), StopSignal())
        world.clock.advance(3 * RULES.lease.seconds)
    assert kinds == ["rank 8"] * RULES.setbacks_in_company + [None]


def test_a_device_that_answers_no_more_costs_one_job_one_setback(world: World) -> None:
    def break_down() -> None:
        raise TrainerBroken("CUDA error: an illegal memory access was encountered")

    outcome = world.worker(trainer=Watched(world, 12, break_down))(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater)
    assert outcome.broken
    assert (world.job().state, world.job().setbacks) == (JobState.INTERRUPTED, 1)
    assert world.until_settled(a_task()) == Done()


@pytest.mark.parametrize("written", [LAYOUT.journal, LAYOUT.lease])
@pytest.mark.parametrize(
    "error", [BlobUnavailable("503"), BlobDenied("403"), PreconditionFailed("another's by now")]
)
def test_a_worker_whose_device_answers_no_more_ends_though_it_cannot_put_the_job_down(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    written: Callable[[str], Location],
) -> None:
    plain = world.blobs.put

    def put(at: Location, *content: Any, **options: Any) -> str:
        if at == written(TASK_ID):
            raise error
        return plain(at, *content, **options)

    def break_down() -> None:
        monkeypatch.setattr(world.blobs, "put", put)
        raise TrainerBroken("CUDA error: the launch timed out and was terminated")

    outcome = world.worker(trainer=Watched(world, 12, break_down))(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater)
    assert outcome.broken


def test_a_journal_that_cannot_be_read_becomes_a_persons_matter(world: World) -> None:
    world.blobs.put(LAYOUT.journal(TASK_ID), b"{}")
    assert isinstance(world.worker()(a_task(), StopSignal(), 0), RetryLater)
    outcome = world.worker()(a_task(), StopSignal(), RULES.most_retries)
    assert isinstance(outcome, DeadLetter)
    assert "revision" in outcome.reason


@pytest.mark.parametrize("retryable", [True, False])
def test_a_failure_of_the_trainer_is_retried_if_it_says_so(world: World, retryable: bool) -> None:
    def fail() -> None:
        raise TrainingFailed(Failure(FailureCode.GPU_OOM, "too small a card", retryable))

    outcome = world.worker(trainer=Watched(world, 12, fail))(a_task(), StopSignal())
    if retryable:
        assert isinstance(outcome, RetryLater)
        assert outcome.reason == "GPU_OOM: too small a card"
        assert world.job().setbacks == 1, "else it would be retried for ever"
        assert world.until_settled(a_task()) == Done()
        assert world.job().state is JobState.COMPLETED
    else:
        assert outcome == Done()
        assert world.job().failure == Failure(FailureCode.GPU_OOM, "too small a card")
    assert len(world.notifier.final) == 1


def test_a_refusal_of_the_backend_goes_to_the_dead_letters_and_can_be_replayed(
    world: World,
) -> None:
    class Refusing:
        def __getattr__(self, name: str) -> Any:
            def refuse(*args: Any) -> None:
                raise NotifierRefused("404: the style is gone")

            return refuse

    outcome = world.worker(notifier=Refusing())(a_task(), StopSignal())
    assert isinstance(outcome, DeadLetter)
    assert "404" in outcome.reason
    assert world.job().state is JobState.ANNOUNCING
    assert world.weights()

    opened = world.trainer.opened
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert world.trainer.opened == opened, "a replay announces and does not train"
    assert len(world.notifier.final) == 1


def test_a_backend_that_is_away_is_tried_again_with_growing_pauses(world: World) -> None:
    class Away:
        def __getattr__(self, name: str) -> Any:
            def fail(*args: Any) -> None:
                raise NotifierUnavailable("502", retry_after=90.0 if name == "completed" else None)

            return fail

    first = world.worker(notifier=Away())(a_task(), StopSignal(), 0)
    later = world.worker(notifier=Away())(a_task(), StopSignal(), 6)
    assert isinstance(first, RetryLater)
    assert isinstance(later, RetryLater)
    assert first.delay == 90.0
    assert later.delay > first.delay
    assert world.worker()(a_task(), StopSignal()) == Done()
    assert len(world.notifier.final) == 1


def test_denied_pictures_are_the_operators_matter_not_the_artists(world: World) -> None:
    class Denying:
        def __getattr__(self, name: str) -> Any:
            def get(at: Location, **options: Any) -> Any:
                if at.bucket == "media":
                    raise BlobDenied("403 for media: let the worker read it")
                return world.blobs.get(at, **options)

            return get if name == "get" else getattr(world.blobs, name)

    outcome = world.worker(blobs=Denying())(a_task(), StopSignal())
    assert outcome == DeadLetter("403 for media: let the worker read it")
    assert world.notifier.final == []
    assert world.job().state is JobState.INTERRUPTED


def test_a_bucket_of_journals_that_is_denied_buries_no_task(world: World) -> None:
    class Denying:
        def __getattr__(self, name: str) -> Any:
            def deny(*_arguments: Any, **_options: Any) -> Any:
                raise BlobDenied("403 for models: let the worker write it")

            return deny

    outcome = world.worker(blobs=Denying())(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater)
    assert "403 for models" in outcome.reason
    outcome = world.worker(blobs=Denying())(a_task(), StopSignal(), RULES.most_retries)
    assert outcome == DeadLetter("403 for models: let the worker write it")
    assert world.until_settled(a_task()) == Done()


@pytest.mark.parametrize("pictures", [12, 10])
def test_one_denied_picture_is_left_out(world: World, pictures: int) -> None:
    class Denying:
        def __getattr__(self, name: str) -> Any:
            def get(at: Location, **options: Any) -> Any:
                if at.key == "7/05.jpg":
                    raise BlobDenied("403")
                return world.blobs.get(at, **options)

            return get if name == "get" else getattr(world.blobs, name)

    assert world.worker(blobs=Denying())(a_task(pictures), StopSignal()) == Done()
    failure = world.job().failure
    assert (failure is None) == (pictures > 10)
    if failure is not None:
        assert "05.jpg: the file is not there or may not be read" in failure.message


@pytest.mark.parametrize("gone", [False, True])
def test_a_damaged_checkpoint_costs_time_and_nothing_else(world: World, gone: bool) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    stop = StopSignal()
    trainer = Watched(world, 40, lambda: stop.request(StopReason.SHUTDOWN))
    world.worker(trainer=trainer)(a_task(), stop)
    checkpoint = world.job().checkpoint
    assert checkpoint is not None
    if gone:
        world.blobs.delete(checkpoint.location)
    else:
        world.blobs.put(checkpoint.location, b"damaged")
    world.worker(trainer=Watched(world, 2, fail))(a_task(), StopSignal())
    assert world.job().checkpoint is None
    assert world.worker()(a_task(), StopSignal()) == Done()
    undisturbed = World()
    undisturbed.worker()(a_task(), StopSignal())
    assert world.weights() == undisturbed.weights()


def test_a_shutdown_before_the_pictures_are_fetched_hands_the_job_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, plain = StopSignal(), world.blobs.get
    stop.request(StopReason.SHUTDOWN)

    def get(at: Location, **options: Any) -> Blob:
        assert at.bucket != "media"
        return plain(at, **options)

    with monkeypatch.context() as patched:
        patched.setattr(world.blobs, "get", get)
        assert world.worker()(a_task(), stop) == HandBack()
    assert world.job().state is JobState.INTERRUPTED
    assert world.until_settled(a_task()) == Done()
