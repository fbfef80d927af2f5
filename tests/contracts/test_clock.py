"""The contract of every clock."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from contextvars import ContextVar, copy_context
from datetime import timedelta

import pytest

from adapters.clock import SystemClock
from adapters.memory import ManualClock
from application.ports import Clock

PERIOD = 0.01


@pytest.fixture(params=[ManualClock, SystemClock])
def clock(request: pytest.FixtureRequest) -> Clock:
    made: Clock = request.param()
    return made


def let_pass_until(clock: Clock, happened: threading.Event) -> None:
    """Let time pass until the event is set; fail after a thousand periods."""
    for _ in range(1000):
        if happened.is_set():
            return
        clock.sleep(PERIOD)
    pytest.fail("it did not happen")


def test_now_is_in_utc_and_says_so(clock: Clock) -> None:
    assert clock.now().utcoffset() == timedelta(0)


def test_a_sleep_takes_at_least_its_time_on_both_clocks(clock: Clock) -> None:
    before, wall = clock.monotonic(), clock.now()
    clock.sleep(0.05)
    assert clock.monotonic() - before >= 0.05
    assert clock.now() > wall


def test_a_sleep_of_zero_or_less_returns(clock: Clock) -> None:
    before = clock.monotonic()
    clock.sleep(0)
    clock.sleep(-1)
    assert clock.monotonic() >= before


def test_an_action_is_called_again_and_again_and_never_after_the_context(clock: Clock) -> None:
    calls, enough = [], threading.Event()

    def action() -> None:
        calls.append(clock.monotonic())
        if len(calls) >= 3:
            enough.set()

    opened = clock.monotonic()
    with clock.every(PERIOD, action):
        let_pass_until(clock, enough)
    count = len(calls)
    clock.sleep(5 * PERIOD)
    assert len(calls) == count
    assert calls[0] - opened >= PERIOD
    assert calls == sorted(calls)


def test_an_action_that_raises_is_logged_and_called_again(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    again = threading.Event()
    calls = []

    def action() -> None:
        calls.append(1)
        if len(calls) > 1:
            again.set()
        raise ValueError("the first trouble")

    with clock.every(PERIOD, action):
        let_pass_until(clock, again)
    assert "the first trouble" in caplog.text


def test_an_action_runs_in_the_context_of_its_caller(clock: Clock) -> None:
    opener: ContextVar[str] = ContextVar("opener", default="unset")
    seen, called = [], threading.Event()

    def action() -> None:
        seen.append(opener.get())
        opener.set("changed")  # stays in the copy
        called.set()

    def open_it(stack: ExitStack) -> None:
        opener.set("the opener's")
        stack.enter_context(clock.every(PERIOD, action))

    with ExitStack() as stack:
        copy_context().run(open_it, stack)
        let_pass_until(clock, called)
    assert seen[0] == "the opener's"
    assert opener.get() == "unset"


def test_two_actions_run_side_by_side(clock: Clock) -> None:
    first, second = threading.Event(), threading.Event()
    with clock.every(PERIOD, first.set), clock.every(2 * PERIOD, second.set):
        let_pass_until(clock, first)
        let_pass_until(clock, second)


def test_the_context_closes_when_the_work_in_it_fails(clock: Clock) -> None:
    calls: list[int] = []
    with pytest.raises(KeyError), clock.every(PERIOD, lambda: calls.append(1)):
        raise KeyError
    count = len(calls)
    clock.sleep(5 * PERIOD)
    assert len(calls) == count


def test_leaving_waits_for_a_running_call(clock: Clock) -> None:
    started, release, finished = threading.Event(), threading.Event(), threading.Event()

    def action() -> None:
        started.set()
        release.wait(30)
        finished.set()

    # The manual clock calls in the thread that advances it, so another thread advances it.
    passing = threading.Thread(target=let_pass_until, args=(clock, started))
    with clock.every(PERIOD, action):
        passing.start()
        assert started.wait(30)
        threading.Timer(0.05, release.set).start()
    assert finished.is_set()
    passing.join()


def test_an_action_never_overlaps_itself(clock: Clock) -> None:
    running = threading.Lock()
    overlaps, calls = [], []
    enough = threading.Event()

    def action() -> None:
        if not running.acquire(blocking=False):
            overlaps.append(1)
            return
        calls.append(1)
        clock.sleep(3 * PERIOD)
        if len(calls) >= 3:
            enough.set()
        running.release()

    with clock.every(PERIOD, action):
        let_pass_until(clock, enough)
    assert not overlaps
