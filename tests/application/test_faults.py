"""Whichever port call fails or is the last before a crash, the outcome is the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from application.ports import BlobUnavailable, NotifierUnavailable
from application.settlement import Ack, Requeue, RetryLater
from application.stop_signal import StopSignal
from domain.events import JobInterrupted
from domain.job import JobState
from tests.application.world import Crash, Fault, World, a_task

TASK = a_task(epochs=12)


def undisturbed() -> tuple[World, list[str]]:
    world, fault = World(), Fault(at=0, error=Crash)
    assert world.worker(fault)(TASK, StopSignal()) == Ack()
    return world, fault.calls


REFERENCE, CALLS = undisturbed()


def unavailable(call: str) -> Callable[[], BaseException]:
    kind = NotifierUnavailable if call.startswith("notifier") else BlobUnavailable
    return lambda: kind(f"{call} is away")


def numbered(call: str) -> str:
    number, name = call.split(" ")
    return f"{number}-{name}"


START = [number for number, call in enumerate(CALLS, start=1) if call == "blobs.put"][2]
"""The journal's first; before it come the task and the lease."""
NUMBERED = [f"{number} {name}" for number, name in enumerate(CALLS, start=1)]


def run_with(fault: Fault) -> World:
    world = World()
    try:
        settlement = world.worker(fault)(TASK, StopSignal())
    except Crash:
        settlement = Requeue()
    if isinstance(settlement, RetryLater):
        world.clock.advance(settlement.delay)
    if settlement != Ack():
        assert world.until_settled(TASK) == Ack()
    return world


def assert_same_end(world: World) -> None:
    assert world.job().state is JobState.COMPLETED
    assert world.weights() == REFERENCE.weights()
    assert world.job().artifact == REFERENCE.job().artifact
    assert world.leases() == []
    assert world.notifier.calls[-1].kind == "completed", "nothing comes after the outcome webhook"


@pytest.mark.parametrize("after", [False, True], ids=["before", "answer-lost"])
@pytest.mark.parametrize("call", NUMBERED, ids=numbered)
def test_a_failing_call_does_not_change_the_outcome(
    call: str, after: bool, caplog: pytest.LogCaptureFixture
) -> None:
    number, name = call.split(" ")
    world = run_with(Fault(int(number), unavailable(name), after))
    assert_same_end(world)
    failures = [event.failures for event in world.events if isinstance(event, JobInterrupted)]
    # If the response to the write of the start is lost, the start looks like a lost worker's.
    assert sum(failures) == (1 if after and int(number) == START else 0)
    assert "defect" not in caplog.text
    assert len(world.notifier.final) == 1


@pytest.mark.parametrize("after", [False, True], ids=["before", "just-after"])
@pytest.mark.parametrize("call", NUMBERED, ids=numbered)
def test_a_crash_does_not_change_the_outcome(call: str, after: bool) -> None:
    number, name = call.split(" ")
    world = run_with(Fault(int(number), Crash, after))
    assert_same_end(world)
    assert len(world.notifier.final) == 1, name


def test_the_run_with_faults_makes_every_kind_of_call() -> None:
    assert set(CALLS) == {
        "blobs.get",
        "blobs.put",
        "blobs.delete",
        "blobs.list",
        "notifier.progress",
        "notifier.completed",
    }
