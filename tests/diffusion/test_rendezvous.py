"""Threads that want the next step meet, and one takes it for all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from adapters.diffusion.together.rendezvous import Rendezvous

LONG = 30.0
"""Seconds that no test waits."""


class Steps:
    """The steps taken, each held up until it is allowed."""

    def __init__(self) -> None:
        self.taken: list[list[str]] = []
        self.failures: dict[str, Exception] = {}
        self.breaks: Exception | None = None
        self.allowed = threading.Event()
        self.allowed.set()
        self.entered = threading.Event()

    def __call__(self, members: Sequence[str]) -> Mapping[str, Exception]:
        self.entered.set()
        assert self.allowed.wait(LONG)
        self.taken.append(sorted(members))
        if self.breaks is not None:
            raise self.breaks
        return {name: error for name, error in self.failures.items() if name in members}


def meeting(steps: Steps, patience: float = LONG) -> Rendezvous[str]:
    return Rendezvous(steps, time.monotonic, patience)


def together(*calls: Callable[[], object]) -> list[Future[object]]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [pool.submit(call) for call in calls]


def test_one_alone_waits_for_nobody() -> None:
    steps = Steps()
    meeting(steps).meet("a")
    assert steps.taken == [["a"]]


def test_those_expected_are_waited_for_and_share_each_step() -> None:
    steps = Steps()
    place = meeting(steps)
    for name in "abc":
        place.expect(name)
    together(*(lambda name=name: [place.meet(name) for _ in range(20)] for name in "abc"))
    assert steps.taken == [["a", "b", "c"]] * 20


def test_who_is_excused_is_not_waited_for() -> None:
    steps = Steps()
    place = meeting(steps)
    place.expect("a")
    place.expect("b")
    waiting = threading.Thread(target=place.meet, args=("a",))
    waiting.start()
    place.excuse("b")
    waiting.join(LONG)
    assert steps.taken == [["a"]]


def test_who_does_not_come_in_time_is_gone_without_until_it_comes_again() -> None:
    steps = Steps()
    place = meeting(steps, patience=0.01)
    place.expect("late")
    place.meet("a")
    place.meet("a")
    assert steps.taken == [["a"], ["a"]]
    steps.allowed.clear()
    steps.entered.clear()
    first = threading.Thread(target=place.meet, args=("a",))
    first.start()
    assert steps.entered.wait(LONG)
    others = [threading.Thread(target=place.meet, args=(name,)) for name in ("late", "b")]
    for other in others:
        other.start()
    while len(place._here) < 2:
        time.sleep(0.001)
    steps.allowed.set()
    for thread in (first, *others):
        thread.join(LONG)
    assert steps.taken[2:] == [["a"], ["b", "late"]]


def test_those_here_wait_from_when_the_first_of_them_came() -> None:
    steps, now = Steps(), [0.0]
    place: Rendezvous[str] = Rendezvous(steps, lambda: now[0], LONG)
    place.expect("late")
    threads = [threading.Thread(target=place.meet, args=(name,), daemon=True) for name in "ab"]
    threads[0].start()
    while not place._here:
        time.sleep(0.001)
    now[0] = LONG
    for thread in threads[1:]:
        thread.start()
    for thread in reversed(threads):
        thread.join(LONG / 2)
    assert steps.taken == [["a", "b"]]


def test_a_failure_of_one_is_raised_to_that_one() -> None:
    steps = Steps()
    steps.failures = {"a": KeyError("a's")}
    place = meeting(steps)
    place.expect("a")
    place.expect("b")
    failed, well = together(lambda: place.meet("a"), lambda: place.meet("b"))
    assert isinstance(failed.exception(), KeyError)
    assert well.exception() is None
    assert steps.taken == [["a", "b"]]


def test_a_step_that_breaks_is_raised_to_all_and_the_next_one_is_taken() -> None:
    steps = Steps()
    steps.breaks = RuntimeError("the device is gone")
    place = meeting(steps)
    place.expect("a")
    place.expect("b")
    for found in together(lambda: place.meet("a"), lambda: place.meet("b")):
        with pytest.raises(RuntimeError, match="device is gone"):
            found.result()
    steps.breaks = None
    place.excuse("b")
    place.meet("a")
    assert steps.taken[-1] == ["a"]
