"""Admission of runs that train at the same time."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import pytest

from application.slots import AdmissionQueue
from application.stop_signal import Stopped, StopReason, StopSignal

LONG = 30.0
"""Timeout in seconds, longer than any test takes."""


class Runs:
    """Threads that take a slot and keep it until they are released."""

    def __init__(self, slots: AdmissionQueue) -> None:
        self.slots = slots
        self.admitted: list[str] = []
        self.waited: list[str] = []
        self.leave: dict[str, threading.Event] = {}
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def start(self, name: str, batch_key: Hashable | None, stop: StopSignal | None = None) -> None:
        """Start a run; returns when it is admitted or queued."""
        self.leave[name] = threading.Event()
        before = len(self.slots._line) + len(self.slots._taken)
        thread = threading.Thread(target=self._run, args=(name, batch_key, stop or StopSignal()))
        self._threads.append(thread)
        thread.start()
        while thread.is_alive() and len(self.slots._line) + len(self.slots._taken) == before:
            pass

    def _run(self, name: str, batch_key: Hashable | None, stop: StopSignal) -> None:
        try:
            with self.slots.hold(batch_key, stop, lambda: self.waited.append(name)):
                with self._changed:
                    self.admitted.append(name)
                    self._changed.notify_all()
                assert self.leave[name].wait(LONG)
        except Stopped:
            with self._changed:
                self.admitted.append(f"{name} stopped")
                self._changed.notify_all()

    def expect(self, *names: str) -> None:
        """These were admitted, in this order, and no others."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.admitted) >= len(names), LONG)
        assert self.admitted == list(names)

    def end(self) -> None:
        for event in self.leave.values():
            event.set()
        for thread in self._threads:
            thread.join(LONG)


@contextmanager
def runs(count: int) -> Iterator[Runs]:
    found = Runs(AdmissionQueue(count))
    try:
        yield found
    finally:
        found.end()


def test_runs_of_one_batch_key_share_as_many_as_there_are_slots() -> None:
    with runs(2) as train:
        train.start("a", "rank 8")
        train.start("b", "rank 8")
        train.expect("a", "b")
        train.start("c", "rank 8")
        train.expect("a", "b")
        train.leave["a"].set()
        train.expect("a", "b", "c")
        assert train.waited == ["c"]


@pytest.mark.parametrize("batch_keys", [("rank 8", "rank 4"), (None, None), ("rank 8", None)])
def test_runs_of_different_batch_keys_or_none_run_one_by_one(
    batch_keys: tuple[str | None, str | None],
) -> None:
    with runs(8) as train:
        train.start("a", batch_keys[0])
        train.expect("a")
        train.start("b", batch_keys[1])
        train.expect("a")
        train.leave["a"].set()
        train.expect("a", "b")


def test_no_run_overtakes_one_that_waits_for_the_others_to_end() -> None:
    with runs(8) as train:
        train.start("a", "rank 8")
        train.expect("a")
        train.start("other", "rank 4")
        train.start("b", "rank 8")
        train.expect("a")
        train.leave["a"].set()
        train.expect("a", "other")
        train.leave["other"].set()
        train.expect("a", "other", "b")


def test_a_stop_leaves_the_admission_queue() -> None:
    stop = StopSignal()
    with runs(1) as train:
        train.start("a", "rank 8")
        train.expect("a")
        train.start("b", "rank 8", stop)
        train.start("c", "rank 8")
        stop.request(StopReason.CANCELLED)
        train.expect("a", "b stopped")
        train.leave["a"].set()
        train.expect("a", "b stopped", "c")


def test_a_failing_run_frees_its_slot() -> None:
    slots = AdmissionQueue(1)

    def wait() -> None:
        raise AssertionError("there is a slot")

    with pytest.raises(KeyError), slots.hold(None, StopSignal(), wait):
        raise KeyError
    with slots.hold(None, StopSignal(), wait):
        pass


def test_a_failing_wait_callback_leaves_the_admission_queue() -> None:
    slots = AdmissionQueue(1)

    def wait() -> None:
        raise OSError("the store is away")

    with slots.hold(None, StopSignal(), lambda: None):
        with pytest.raises(OSError, match="away"), slots.hold(None, StopSignal(), wait):
            pass
        assert len(slots._line) == 0
