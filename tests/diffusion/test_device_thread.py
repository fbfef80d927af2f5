"""One thread uses the device: calls run in order, and runs share their steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from adapters.diffusion.device_thread import DeviceThread
from application.ports import TrainerBroken

LONG = 30.0
"""Timeout in seconds; no test reaches it."""


class Steps:
    """Records the steps that runs took."""

    def __init__(self) -> None:
        self.taken: list[list[str]] = []
        self.threads: set[int] = set()
        self.failures: dict[str, Exception] = {}
        self.breaks: Exception | None = None

    def __call__(self, runs: Sequence[str]) -> Mapping[str, str | Exception]:
        self.taken.append(sorted(runs))
        self.threads.add(threading.get_ident())
        if self.breaks is not None:
            raise self.breaks
        return {name: self.failures.get(name, f"report of {name}") for name in runs}


@contextmanager
def served(steps: Steps, max_wait: float = LONG) -> Iterator[DeviceThread[str, str]]:
    thread: DeviceThread[str, str] = DeviceThread(steps, max_wait)
    with thread.used():
        yield thread


def at_once(*calls: Callable[[], object]) -> list[object]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_calls_and_steps_are_made_by_one_thread_that_ends_with_its_last_user() -> None:
    steps = Steps()
    with served(steps) as thread:
        with thread.used():
            assert thread.step("a") == "report of a"
        assert thread.call(threading.get_ident) in steps.threads
        (serving,) = (t for t in threading.enumerate() if t.ident in steps.threads)
        assert threading.get_ident() not in steps.threads
    serving.join(LONG)
    assert not serving.is_alive()
    with thread.used():
        assert thread.call(lambda: "again") == "again"


def test_runs_that_are_expected_are_waited_for_and_share_each_step() -> None:
    steps = Steps()
    with served(steps) as thread:
        for name in "abc":
            thread.add_run(name)
        reports = at_once(*(lambda n=name: [thread.step(n) for _ in range(20)] for name in "abc"))
    assert steps.taken == [["a", "b", "c"]] * 20
    assert reports == [[f"report of {name}"] * 20 for name in "abc"]


def test_a_run_that_left_is_not_waited_for() -> None:
    steps = Steps()
    with served(steps) as thread:
        thread.add_run("a")
        thread.add_run("b")
        at_once(lambda: thread.step("a"), lambda: thread.remove_run("b"))
    assert steps.taken == [["a"]]


def test_a_late_run_is_left_out_until_its_next_step() -> None:
    steps = Steps()
    with served(steps, max_wait=0.01) as thread:
        thread.add_run("late")
        thread.step("a")
        thread.step("a")
        assert steps.taken == [["a"], ["a"]]
        thread.add_run("a")
        at_once(lambda: thread.step("late"), lambda: thread.step("a"))
        assert sorted(name for step in steps.taken[2:] for name in step) == ["a", "late"]


def test_a_call_does_not_wait_for_a_step_waiting_for_other_runs() -> None:
    steps = Steps()
    with served(steps) as thread, ThreadPoolExecutor(1) as pool:
        thread.add_run("a")
        thread.add_run("b")
        waiting = pool.submit(thread.step, "a")
        assert thread.call(lambda: len(steps.taken)) == 0
        assert thread.step("b") == "report of b"
        waiting.result(LONG)


def test_calls_without_a_pause_let_a_step_through() -> None:
    """Previews use the device image by image while another run trains."""
    events: list[str] = []

    class Run(str):
        def __hash__(self) -> int:
            events.append("waits")
            return super().__hash__()

    def take_step(runs: Sequence[str]) -> Mapping[str, str]:
        events.append("step")
        return dict.fromkeys(runs, "report")

    def draw() -> None:
        time.sleep(0.002)
        events.append("call")

    def draw_until_the_step() -> None:
        while "step" not in events:
            thread.call(draw)

    thread = DeviceThread(take_step, LONG)
    with thread.used():
        at_once(draw_until_the_step, draw_until_the_step, lambda: thread.step(Run("a")))
    between = events[events.index("waits") : events.index("step")]
    assert between.count("call") <= 2  # each caller's, if it came before


def test_an_error_is_raised_only_in_the_run_that_failed() -> None:
    steps = Steps()
    steps.failures["b"] = KeyError("b")
    with served(steps) as thread:
        thread.add_run("a")
        thread.add_run("b")

        def failing() -> str:
            with pytest.raises(KeyError):
                thread.step("b")
            return "failed"

        assert at_once(lambda: thread.step("a"), failing) == ["report of a", "failed"]


@pytest.mark.parametrize("broken", [True, False])
def test_only_device_errors_break_the_trainer(broken: bool) -> None:
    steps = Steps()
    error = RuntimeError("CUDA error: an illegal memory access\nDetails" if broken else "shapes")
    expected = TrainerBroken if broken else RuntimeError
    message = "^CUDA error: an illegal memory access$" if broken else "^shapes$"

    def work() -> None:
        raise error

    with served(steps) as thread:
        with pytest.raises(expected, match=message):
            thread.call(work)
        steps.breaks = error
        with pytest.raises(expected, match=message):
            thread.step("a")
        steps.breaks = None
        steps.failures["a"] = error
        with pytest.raises(expected, match=message):
            thread.step("a")
        thread.remove_run("a")
        assert thread.step("b") == "report of b"
