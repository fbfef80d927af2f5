"""The completion call: attempts, delays, and the lease that it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from application.journal import JobRecord
from application.lease import LeaseLost
from application.notify_outcome import MAX_CALL_SECONDS, OutcomeNotifier
from application.ports import (
    BlobDenied,
    BlobUnavailable,
    NotifierRejected,
    NotifierUnavailable,
)
from application.settlement import Ack, DeadLetter, Requeue
from application.stop_signal import StopReason, StopSignal
from domain.failure import Failure, FailureCode
from domain.job import JobState, TrainingJob
from domain.location import Location
from tests.application.world import TASK_ID, World


class ScriptedNotifier:
    """A backend that raises the given errors in turn, and accepts all further calls."""

    def __init__(self, *responses: Exception | None, arrived: bool | None = None) -> None:
        self.responses: Iterator[Exception | None] = iter(responses)
        self.tasks: list[str] = []
        self.arrived = arrived

    def failed(self, task_id: str, _style_id: int, _failure: Failure) -> None:
        self.tasks.append(task_id)
        if (error := next(self.responses, None)) is not None:
            raise error

    def has_arrived(self, *_outcome: object) -> bool | None:
        return self.arrived


def away(retry_after: float | None = None) -> NotifierUnavailable:
    return NotifierUnavailable("502", retry_after=retry_after)


def opened(world: World) -> JobRecord:
    return world.store(worker="worker").open(TrainingJob(task_id=TASK_ID, style_id=7))


def failing(world: World) -> JobRecord:
    record = opened(world)
    record.apply(record.job.fail(Failure(FailureCode.GPU_OOM, "The card is too small.")))
    return record


def notify(
    world: World,
    backend: ScriptedNotifier,
    *,
    record: JobRecord | None = None,
    stop: StopSignal | None = None,
    renew: Callable[[], None] = lambda: None,
    is_valid: bool = True,
    in_flight_until: float = -math.inf,
    **options: Any,
) -> Any:
    named: dict[str, Any] = {"notifier": backend, "random": lambda: 1.0, **options}
    notify_outcome = OutcomeNotifier(clock=world.clock, **named)
    lease: Any = SimpleNamespace(
        renew_if_due=lambda _stop: renew(), is_valid=is_valid, in_flight_until=in_flight_until
    )
    return notify_outcome(record or failing(world), lease, stop or StopSignal())


def test_attempts_are_counted_and_delays_double_up_to_the_maximum(world: World) -> None:
    backend, began = ScriptedNotifier(*[away()] * 9), world.clock.monotonic()
    with pytest.raises(NotifierUnavailable, match="502"):
        notify(world, backend, tries=6, first_pause=1.0, max_pause=5.0)
    assert world.clock.monotonic() - began == pytest.approx(1.0 + 2.0 + 4.0 + 5.0 + 5.0)
    assert backend.tasks == [TASK_ID] * 6
    assert world.job().state is JobState.NOTIFYING


def test_jitter_shortens_a_delay_by_up_to_a_half(world: World) -> None:
    chances, began = iter([0.0, 0.5]), world.clock.monotonic()
    backend = ScriptedNotifier(away(), away())
    assert notify(world, backend, first_pause=8.0, random=lambda: next(chances)) == Ack()
    assert world.clock.monotonic() - began == pytest.approx(4.0 + 15.0 * 0.75)


@pytest.mark.parametrize(("asked", "waited"), [(15.0, 15.0), (3.0, 3.0), (0.0, 1.0), (None, 1.0)])
def test_a_delay_is_never_shorter_than_retry_after(
    world: World, asked: float | None, waited: float
) -> None:
    began = world.clock.monotonic()
    assert notify(world, ScriptedNotifier(away(asked))) == Ack()
    assert world.clock.monotonic() - began == pytest.approx(waited)


def test_a_long_retry_after_is_left_to_a_later_delivery(world: World) -> None:
    backend, began = ScriptedNotifier(away(600.0)), world.clock.monotonic()
    with pytest.raises(NotifierUnavailable) as caught:
        notify(world, backend)
    assert caught.value.retry_after == 600.0
    assert world.clock.monotonic() == began
    assert len(backend.tasks) == 1


def test_a_call_that_has_arrived_is_recorded_and_not_repeated(world: World) -> None:
    backend = ScriptedNotifier(away(), arrived=True)
    assert notify(world, backend) == Ack()
    assert len(backend.tasks) == 1
    assert world.job().state is JobState.FAILED


def test_a_lost_workers_call_is_looked_up_before_it_is_repeated(
    world: World,
) -> None:
    lost = failing(world)
    lost.apply(lost.job.begin_notification())
    backend = ScriptedNotifier(arrived=True)
    assert notify(world, backend, record=opened(world)) == Ack()
    assert backend.tasks == []
    assert world.job().state is JobState.FAILED


@pytest.mark.parametrize("arrived", [False, None])
def test_a_call_that_may_not_have_arrived_is_repeated(world: World, arrived: bool | None) -> None:
    backend = ScriptedNotifier(away(), arrived=arrived)
    assert notify(world, backend) == Ack()
    assert len(backend.tasks) == 2


@pytest.mark.parametrize("error", [BlobUnavailable("503"), BlobDenied("403")])
def test_an_accepted_call_is_recorded_once_the_store_is_back(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The next delivery would repeat a call that is not recorded."""
    backend, put, failures = ScriptedNotifier(), world.blobs.put, [error] * 20

    def failing_after_the_call(at: Location, *content: Any, **options: Any) -> str:
        if backend.tasks and failures:
            raise failures.pop()
        return put(at, *content, **options)

    record = failing(world)
    monkeypatch.setattr(world.blobs, "put", failing_after_the_call)
    assert notify(world, backend, record=record) == Ack()
    assert not failures
    assert len(backend.tasks) == 1
    assert world.job().state is JobState.FAILED


def test_a_rejection_is_not_repeated(world: World) -> None:
    backend = ScriptedNotifier(NotifierRejected("404"))
    assert notify(world, backend) == DeadLetter("the backend rejects the outcome: 404")
    assert len(backend.tasks) == 1


def test_the_lease_is_renewed_before_every_attempt(world: World) -> None:
    held: list[int] = []
    backend = ScriptedNotifier(away(), away())
    notify(world, backend, renew=lambda: held.append(len(backend.tasks)))
    assert held == [0, 1, 2]


@pytest.mark.parametrize("error", [LeaseLost("gone"), BlobUnavailable("no way to the store")])
def test_without_a_certain_lease_no_call_is_made(world: World, error: Exception) -> None:
    def unsure() -> None:
        raise error

    backend = ScriptedNotifier()
    with pytest.raises(type(error)):
        notify(world, backend, renew=unsure)
    assert backend.tasks == []


def test_a_worker_overtaken_between_attempts_makes_no_further_call(world: World) -> None:
    """The new owner of the job has already called the backend."""
    record, backend = failing(world), ScriptedNotifier(away(), None)

    def overtake() -> None:
        if backend.tasks:
            other = opened(world)
            other.apply(other.job.begin_notification())
            other.apply(other.job.finish())

    with pytest.raises(LeaseLost):
        notify(world, backend, record=record, renew=overtake)
    assert len(backend.tasks) == 1


def test_a_pause_while_recording_the_intent_rechecks_the_lease(
    world: World,
) -> None:
    asked: list[str] = []

    def renew() -> None:
        asked.append("renewed")
        if len(asked) > 1:
            raise LeaseLost("another worker has renewed it")

    backend = ScriptedNotifier()
    with pytest.raises(LeaseLost):
        notify(world, backend, renew=renew, is_valid=False)
    assert backend.tasks == []
    assert len(asked) == 2


def test_after_a_stop_no_call_is_repeated(world: World) -> None:
    stop, backend = StopSignal(), ScriptedNotifier(away(), away())
    with (
        world.clock.every(0.5, lambda: stop.request(StopReason.SHUTDOWN)),
        pytest.raises(NotifierUnavailable),
    ):
        notify(world, backend, stop=stop, first_pause=10.0)
    assert len(backend.tasks) == 1


@pytest.mark.parametrize(("left", "calls"), [(MAX_CALL_SECONDS - 1, 0), (MAX_CALL_SECONDS + 1, 1)])
def test_a_call_that_would_be_cut_off_is_not_started(
    world: World, left: float, calls: int
) -> None:
    stop, backend = StopSignal(), ScriptedNotifier()
    world.clock.advance(100.0)
    stop.request(StopReason.SHUTDOWN, deadline=world.clock.monotonic() + left)
    outcome = notify(world, backend, stop=stop)
    assert outcome == (Ack() if calls else Requeue())
    assert len(backend.tasks) == calls


@pytest.mark.parametrize("left", [math.inf, 15.0 + MAX_CALL_SECONDS + 1])
@pytest.mark.parametrize("stopped_at", [0.0, 5.0])
def test_a_stop_does_not_shorten_the_wait_for_a_progress_call_in_flight(
    world: World, stopped_at: float, left: float
) -> None:
    stop, backend, began = StopSignal(), ScriptedNotifier(), world.clock.monotonic()
    with world.clock.every(
        stopped_at or 0.1, lambda: stop.request(StopReason.SHUTDOWN, deadline=began + left)
    ):
        assert notify(world, backend, stop=stop, in_flight_until=began + 15.0) == Ack()
    assert world.clock.monotonic() == began + 15.0


def test_without_time_to_wait_for_a_progress_call_in_flight_the_job_is_requeued_at_once(
    world: World,
) -> None:
    stop, backend, began = StopSignal(), ScriptedNotifier(), world.clock.monotonic()
    deadline = began + 15.0 + MAX_CALL_SECONDS - 1
    with world.clock.every(5.0, lambda: stop.request(StopReason.SHUTDOWN, deadline=deadline)):
        assert notify(world, backend, stop=stop, in_flight_until=began + 15.0) == Requeue()
    assert world.clock.monotonic() <= began + 6.0
    assert backend.tasks == []
