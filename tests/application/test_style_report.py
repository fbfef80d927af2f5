"""The report: stored next to the journal, and never a reason to fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from adapters.memory import MemoryBlobStore, MemoryReporter, MemoryTrainer
from application.ports import BlobUnavailable, TrainerBroken
from application.settlement import Ack, RetryLater
from application.stop_signal import StopReason, StopSignal
from application.style_report import RETRY_TIMEOUT
from domain.job import JobState
from domain.location import Bucket, Location
from domain.report import StyleReport
from domain.results import Preview
from tests.application.world import CONFIG, KEYS, TASK_ID, AwayAfter, Crash, World, a_task


def test_a_report_is_stored_next_to_the_journal(world: World) -> None:
    world.worker()(a_task(), StopSignal())
    assert KEYS.report(TASK_ID, "report.html") in world.blobs.blobs


def test_a_report_is_stored_as_a_page_that_a_browser_opens(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, types = world.blobs.put, {}

    def noting(at: Location, *content: Any, **options: Any) -> str:
        types[at] = options.get("content_type")
        return put(at, *content, **options)

    monkeypatch.setattr(world.blobs, "put", noting)
    world.worker()(a_task(), StopSignal())
    assert types[KEYS.report(TASK_ID, "report.html")] == "text/html; charset=utf-8"


def test_a_report_compares_images_of_style_and_base_model(world: World) -> None:
    drawn: list[tuple[Preview, ...]] = []

    class Noting:
        def render(self, report: StyleReport) -> list[Any]:
            drawn.extend((report.before, report.after))
            return []

    world.worker(reporter=Noting())(a_task(), StopSignal())
    before, after = ([b"by the base" in preview.png for preview in each] for each in drawn)
    assert (before, after) == ([True], [False])


def test_a_report_shows_how_long_the_job_took(world: World) -> None:
    took: list[float] = []

    class Noting:
        def render(self, report: StyleReport) -> list[Any]:
            took.append(report.seconds)
            return []

    world.clock.advance(1000.0)
    world.worker(reporter=Noting())(a_task(), StopSignal())
    assert took == [75.0]


def test_a_failing_report_does_not_fail_the_job(world: World) -> None:
    class Broken:
        def render(self, report: Any) -> Any:
            raise RuntimeError(f"no ink for {report.task.style_id}")

    assert world.worker(reporter=Broken())(a_task(), StopSignal()) == Ack()
    assert world.job().state is JobState.COMPLETED


def of_the_report(at: Location, _data: bytes) -> bool:
    return at == KEYS.report(TASK_ID, "report.html")


def test_a_report_waits_for_a_store_that_is_briefly_unavailable(world: World) -> None:
    blobs = AwayAfter(world, of_the_report, seconds=20.0)
    assert world.worker(blobs=blobs)(a_task(), StopSignal()) == Ack()
    assert KEYS.report(TASK_ID, "report.html") in world.blobs.blobs


def test_a_report_waits_for_the_checkpoint_previews(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, away = world.blobs.list, [BlobUnavailable("503")]

    def listing(bucket: Bucket, prefix: str) -> Iterable[Location]:
        if prefix == KEYS.report(TASK_ID, "previews/epoch_").key and away:
            raise away.pop()
        return found(bucket, prefix)

    monkeypatch.setattr(world.blobs, "list", listing)
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert not away
    assert KEYS.report(TASK_ID, "report.html") in world.blobs.blobs


def test_a_style_has_no_report_if_the_store_stays_unavailable(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    blobs = AwayAfter(world, of_the_report, seconds=RETRY_TIMEOUT + 10.0)
    world.worker(blobs=blobs)(a_task(), StopSignal())
    assert KEYS.report(TASK_ID, "report.html") not in world.blobs.blobs
    assert world.job().state is JobState.COMPLETED
    assert "ERROR" not in {record.levelname for record in caplog.records}
    world.clock.advance(60.0)
    assert world.until_settled(a_task()) == Ack()
    assert len(world.notifier.final) == 1


def test_a_device_lost_while_writing_the_report_ends_one_worker(world: World) -> None:
    class Breaking(MemoryReporter):
        def render(self, report: Any) -> Any:
            raise TrainerBroken("the device no longer responds")

    settlement = world.worker(reporter=Breaking())(a_task(), StopSignal())
    assert isinstance(settlement, RetryLater)
    assert settlement.device_broken
    assert (world.job().state, world.job().failures) == (JobState.COMPLETED, 0)
    assert world.worker(reporter=Breaking())(a_task(), StopSignal(), 1) == Ack()
    assert len(world.notifier.final) == 1


def test_a_report_that_kills_the_process_kills_one_worker(world: World) -> None:
    class Deadly:
        def render(self, report: Any) -> Any:
            raise Crash

    with pytest.raises(Crash):
        world.worker(reporter=Deadly())(a_task(), StopSignal())
    assert world.job().state is JobState.COMPLETED, "the artist has not waited for it"
    assert len(world.notifier.final) == 1
    world.clock.advance(3 * CONFIG.lease.seconds)
    assert world.worker(reporter=Deadly())(a_task(), StopSignal()) == Ack()
    assert len(world.notifier.final) == 1
    assert world.job().attempt == 1, "nothing is trained again"


def test_a_redelivery_leaves_the_worker_that_writes_the_report_alone(world: World) -> None:
    outcomes: list[object] = []

    class Redelivered(MemoryReporter):
        def render(self, report: Any) -> Any:
            outcomes.append(world.worker()(a_task(), StopSignal()))
            world.clock.advance(CONFIG.lease.seconds)
            return super().render(report)

    assert world.worker(reporter=Redelivered())(a_task(), StopSignal()) == Ack()
    (outcome,) = outcomes
    assert isinstance(outcome, RetryLater)
    assert outcome.elsewhere
    assert KEYS.report(TASK_ID, "report.html") in world.blobs.blobs
    assert world.leases() == []
    assert world.until_settled(a_task()) == Ack()
    assert len(world.notifier.final) == 1


def test_a_lease_from_a_wrong_clock_does_not_keep_the_message_of_a_finished_job(
    world: World,
) -> None:
    assert world.worker()(a_task(), StopSignal()) == Ack()
    expires = (world.clock.now() + timedelta(days=400)).isoformat()
    lease = {"owner": "dead", "expires_at": expires, "seconds": 60, "revision": 1}
    world.blobs.put(KEYS.job(TASK_ID, "lease.json"), json.dumps(lease).encode())
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.leases() == []


class Stopping:
    """A store that requests a stop as soon as a blob is stored."""

    def __init__(self, blobs: MemoryBlobStore, stop: StopSignal, at: Location) -> None:
        self._blobs, self._stop, self._at = blobs, stop, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    def put(self, at: Location, *content: Any, **options: Any) -> str:
        tag = self._blobs.put(at, *content, **options)
        if at == self._at:
            self._stop.request(StopReason.SHUTDOWN)
        return tag


def test_a_stopping_worker_writes_no_report(world: World) -> None:
    stop = StopSignal()
    world.worker(blobs=Stopping(world.blobs, stop, KEYS.weights(7)))(a_task(), stop)
    assert world.weights()
    assert KEYS.report(TASK_ID, "report.html") not in world.blobs.blobs
    assert world.until_settled(a_task()) == Ack()
    assert len(world.notifier.final) == 1


def test_a_stop_while_previews_are_drawn_ends_the_report_and_the_style_is_announced(
    world: World,
) -> None:
    stop, drawn = StopSignal(), []

    def previews(*, with_lora: bool, check: Callable[[], None]) -> tuple[Preview, ...]:
        drawn.append(with_lora)
        if not with_lora:
            stop.request(StopReason.SHUTDOWN)
        check()
        return ()

    class Stopped(MemoryTrainer):
        @contextmanager
        def open(self, plan: Any, resume: Any) -> Iterator[Any]:
            with super().open(plan, resume) as session:
                session.previews = previews  # type: ignore[assignment, method-assign]  # a double of one call
                yield session

    trainer = Stopped(world.clock)
    assert world.worker(trainer=trainer)(a_task(epochs=5), stop) == Ack()
    assert drawn[-1] is False, "no round is begun after a stop"
    assert KEYS.report(TASK_ID, "report.html") not in world.blobs.blobs
    assert len(world.notifier.final) == 1
