"""Only one of several workers with a task's message runs it, whatever their clocks show."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from application.lease import MAX_SECONDS, LeaseTerms
from application.ports import BlobDenied, BlobUnavailable
from application.settlement import Ack, Requeue, RetryLater
from application.stop_signal import StopReason, StopSignal
from domain.events import ProgressMade
from domain.job import JobState
from domain.location import Location
from tests.application.world import CONFIG, KEYS, TASK_ID, Watched, World, a_task


def test_a_live_lease_of_another_worker_makes_the_message_retry_later(world: World) -> None:
    inner: list[Any] = []

    def meanwhile() -> None:
        began = world.clock.monotonic()
        inner.append(world.worker()(a_task(), StopSignal()))
        assert world.clock.monotonic() == began, "at once"

    outcome = world.worker(trainer=Watched(world, 30, meanwhile))(a_task(), StopSignal())
    assert outcome == Ack()
    (retry_later,) = inner
    assert isinstance(retry_later, RetryLater)
    assert 0 < retry_later.delay <= CONFIG.lease.seconds
    assert len(world.notifier.final) == 1
    assert world.trainer.opened == 0


def test_only_one_of_two_workers_acquires_a_free_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, plain = world.worker(), world.blobs.put

    def put(at: Location, *content: Any, **options: Any) -> str:
        if at == KEYS.job(TASK_ID, "lease.json"):
            monkeypatch.undo()
            world.lease("theirs").acquire(StopSignal())
        return plain(at, *content, **options)

    monkeypatch.setattr(world.blobs, "put", put)
    outcome = ours(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater)
    assert outcome.elsewhere
    assert 0 < outcome.delay <= CONFIG.lease.seconds
    assert world.trainer.opened == 0


def test_a_job_completed_before_the_lease_is_acquired_is_left_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, plain = world.worker(), world.blobs.put

    def put(at: Location, *content: Any, **options: Any) -> str:
        if at == KEYS.job(TASK_ID, "lease.json"):
            monkeypatch.undo()
            assert world.worker()(a_task(), StopSignal()) == Ack()
        return plain(at, *content, **options)

    monkeypatch.setattr(world.blobs, "put", put)
    assert ours(a_task(), StopSignal()) == Ack()
    assert world.trainer.opened == 1
    assert len(world.notifier.final) == 1
    assert world.leases() == []


def test_the_lease_of_a_dead_worker_is_taken_over(world: World) -> None:
    world.blobs.put(
        KEYS.job(TASK_ID, "lease.json"),
        json.dumps(
            {"owner": "dead", "expires_at": "2025-12-31T23:59:59+00:00", "revision": 4}
        ).encode(),
    )
    assert world.worker()(a_task(), StopSignal()) == Ack()


@pytest.mark.parametrize(
    "found",
    [
        b"garbage \xff",
        b"[]",
        b"{}",
        b'{"owner": "x", "expires_at": 5, "revision": 1}',
        b'{"owner": "x", "expires_at": "2026-01-01T00:00+00:00", "revision": [], "seconds": 9}',
        b'{"owner": "x", "expires_at": "2026-01-01T00:00+00:00", "revision": 1, "seconds": NaN}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_lease_is_replaced(found: bytes, world: World) -> None:
    world.blobs.put(KEYS.job(TASK_ID, "lease.json"), found)
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.leases() == []


@pytest.mark.parametrize("expires_at", ["2000-01-01T00:00:00+00:00", "9999-01-01T00:00:00+00:00"])
def test_a_forged_lease_term_delays_a_job_for_a_bounded_time(
    expires_at: str, world: World
) -> None:
    forged = {"owner": "nobody", "expires_at": expires_at, "revision": 1, "seconds": 1e9}
    world.blobs.put(KEYS.job(TASK_ID, "lease.json"), json.dumps(forged).encode())
    began = world.clock.monotonic()
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.clock.monotonic() - began < 2 * MAX_SECONDS


def test_a_clock_that_jumps_ahead_takes_no_live_lease(world: World) -> None:
    inner: list[Any] = []

    def meanwhile() -> None:
        world.clock.jump(10_000.0)
        inner.append(world.worker()(a_task(), StopSignal()))
        world.clock.jump(-10_000.0)

    world.worker(trainer=Watched(world, 30, meanwhile))(a_task(), StopSignal())
    assert isinstance(inner[0], RetryLater)
    assert len(world.notifier.final) == 1


def test_a_longer_lease_term_is_respected(world: World) -> None:
    """Workers may have different lease terms: another's lease may still be valid."""
    longer = LeaseTerms(20 * CONFIG.lease.seconds)
    lease = world.lease("longer", longer)
    with lease.hold(StopSignal(), is_finished=lambda: False):
        world.clock.advance(10.0)
        outcome = world.worker()(a_task(), StopSignal())
        assert isinstance(outcome, RetryLater)
        assert lease.is_valid
        world.clock.jump(-10_000.0)  # expires in the far future, so it is watched
        assert isinstance(world.worker()(a_task(), StopSignal()), RetryLater)
        assert lease.is_valid
    assert not lease.is_valid, "it is released"
    assert world.trainer.opened == 0


def test_a_stop_interrupts_watching_a_lease(world: World) -> None:
    world.lease("dead").acquire(StopSignal())
    world.clock.advance(2 * CONFIG.lease.seconds)
    stop, began = StopSignal(), world.clock.monotonic()
    with world.clock.every(2.0, lambda: stop.request(StopReason.SHUTDOWN)):
        assert world.worker()(a_task(), stop) == Requeue()
    assert world.clock.monotonic() - began <= 3.0
    lease = json.loads(world.blobs.get(KEYS.job(TASK_ID, "lease.json")).data)
    assert lease["owner"] == "dead", "it was not watched for long enough to be taken over"


def test_the_lease_is_renewed_before_expensive_calls(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ages: list[timedelta] = []
    put, completed = world.blobs.put, world.notifier.completed

    def note_its_age() -> None:
        lease = json.loads(world.blobs.get(KEYS.job(TASK_ID, "lease.json")).data)
        term = timedelta(seconds=CONFIG.lease.seconds)
        ages.append(world.clock.now() + term - datetime.fromisoformat(lease["expires_at"]))

    def noting_put(at: Location, *content: Any, **options: Any) -> str:
        if at == KEYS.weights(7):
            note_its_age()
            world.clock.advance(0.9 * CONFIG.lease.renew_every)
        return put(at, *content, **options)

    def noting_completed(*content: Any) -> None:
        note_its_age()
        completed(*content)

    monkeypatch.setattr(world.blobs, "put", noting_put)
    monkeypatch.setattr(world.notifier, "completed", noting_completed)
    assert world.worker()(a_task(), StopSignal()) == Ack()
    moment = timedelta(seconds=CONFIG.lease.renew_every / 4)
    assert len(ages) == 2
    assert max(ages) <= moment


def test_a_worker_that_lost_its_lease_writes_and_sends_nothing(world: World) -> None:
    def steal() -> None:
        world.blobs.put(
            KEYS.job(TASK_ID, "lease.json"),
            json.dumps(
                {"owner": "thief", "expires_at": "2026-01-01T00:10:00+00:00", "revision": 99}
            ).encode(),
        )

    outcome = world.worker(trainer=Watched(world, 35, steal))(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater)
    assert outcome.elsewhere
    steps = [e.progress.current_step for e in world.events if isinstance(e, ProgressMade)]
    assert max(steps) <= 35 + CONFIG.lease.renew_every
    assert world.notifier.final == []
    assert KEYS.weights(7) not in world.blobs.blobs


def test_a_worker_that_lost_its_lease_sends_no_progress_during_a_long_step(
    world: World,
) -> None:
    calls: list[int] = []

    def lose_it_in_mid_step() -> None:
        world.blobs.put(
            KEYS.job(TASK_ID, "lease.json"),
            b'{"owner": "thief", "expires_at": "2100-01-01T00:00:00+00:00", "revision": 99}',
        )
        world.clock.advance(CONFIG.lease.renew_every)
        calls.append(len(world.notifier.calls))
        world.clock.advance(10 * CONFIG.lease.seconds)
        calls.append(len(world.notifier.calls))

    trainer = Watched(world, 18, lose_it_in_mid_step)
    config = replace(CONFIG, progress_every=1.0)
    world.worker(trainer=trainer, config=config)(a_task(), StopSignal())
    assert calls[0] > 0
    assert calls[1] == calls[0]


def test_a_worker_that_cannot_renew_stops_calling_before_the_lease_expires(
    world: World,
) -> None:
    sent_at: list[float] = []
    away: list[bool] = []

    class CutOff:
        def __getattr__(self, name: str) -> Any:
            def put(at: Location, *content: Any, **options: Any) -> str:
                if away and at == KEYS.job(TASK_ID, "lease.json"):
                    raise BlobUnavailable("no way to the store")
                return world.blobs.put(at, *content, **options)

            return put if name == "put" else getattr(world.blobs, name)

    class Noting:
        def __getattr__(self, name: str) -> Any:
            def call(*content: Any) -> None:
                sent_at.append(world.clock.monotonic())

            return call

    def lose_the_way() -> None:
        away.append(True)
        began.append(world.clock.monotonic())
        world.clock.advance(10 * CONFIG.lease.seconds)
        away.clear()

    began: list[float] = []
    config = replace(CONFIG, progress_every=1.0)
    world.worker(
        trainer=Watched(world, 20, lose_the_way), notifier=Noting(), blobs=CutOff(), config=config
    )(a_task(), StopSignal())
    silent = [moment for moment in sent_at if 0 < moment - began[0] < 10 * CONFIG.lease.seconds]
    assert silent, "it speaks on while the lease is certainly its own"
    assert max(silent) - began[0] <= CONFIG.lease.takeover_delay
    assert sent_at[-1] > began[0] + 10 * CONFIG.lease.seconds, "and again once it is"


def test_completing_a_job_leaves_a_lease_taken_over_by_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, plain = KEYS.job(TASK_ID, "lease.json"), world.notifier.completed

    def unavailable(*_: object, **__: object) -> str:
        raise BlobUnavailable("no way to the store")

    def completed(*content: Any) -> None:
        plain(*content)
        with monkeypatch.context() as cut_off:
            cut_off.setattr(world.blobs, "put", unavailable)
            world.clock.advance(CONFIG.lease.takeover_delay)
        world.blobs.put(at, b"theirs")

    monkeypatch.setattr(world.notifier, "completed", completed)
    assert world.worker()(a_task(), StopSignal()) == Ack()
    assert world.blobs.get(at).data == b"theirs"


def test_a_lease_that_cannot_be_deleted_is_deleted_on_redelivery(world: World) -> None:
    class Keeping:
        def __getattr__(self, name: str) -> Any:
            def fail(at: Location) -> None:
                raise BlobUnavailable(f"503 for {at}")

            return fail if name == "delete" else getattr(world.blobs, name)

    outcome = world.worker(blobs=Keeping())(a_task(), StopSignal())
    assert isinstance(outcome, RetryLater), "an acknowledged message would leave it for ever"
    assert world.job().state is JobState.COMPLETED
    assert len(world.leases()) == 1
    assert world.until_settled(a_task()) == Ack()
    assert world.leases() == []
    assert len(world.notifier.final) == 1


def test_a_store_that_denies_deletes_fails_no_job(world: World) -> None:
    class Keeping:
        def __getattr__(self, name: str) -> Any:
            def reject(at: Location) -> None:
                raise BlobDenied(f"403 for {at}")

            return reject if name == "delete" else getattr(world.blobs, name)

    assert world.worker(blobs=Keeping())(a_task(), StopSignal()) == Ack()
    world.clock.advance(CONFIG.lease.seconds)
    assert world.worker(blobs=Keeping())(a_task(), StopSignal()) == Ack()
    assert len(world.notifier.final) == 1
