"""Virtual time: waiting threads resume at their moments, one at a time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from greenlet import getcurrent, greenlet


class Gone(BaseException):
    """The process has died; do not catch this."""


@dataclass(eq=False)
class Process:
    """Threads that live, freeze and die together."""

    name: str
    dead: bool = False
    frozen_until: float = 0.0
    """Frozen as by SIGSTOP, or as on a paused machine."""


class _SimulatedThread(greenlet):  # type: ignore[misc]  # it has no types
    """One thread of a process."""

    process: Process


class Timeline:
    """Runs threads in virtual time. Threads due at the same moment run in random order."""

    def __init__(self, chance: random.Random) -> None:
        self.now = 0.0
        """Seconds since the start."""
        self._chance = chance
        self._due: list[tuple[float, float, int, Callable[[], object]]] = []
        self._count = 0
        self._hub = getcurrent()

    def at(self, moment: float, action: Callable[[], object]) -> None:
        """Call ``action`` at that moment. It belongs to no process and must not wait."""
        self._count += 1
        heapq.heappush(self._due, (moment, self._chance.random(), self._count, action))

    def spawn(self, process: Process, work: Callable[[], object]) -> None:
        """Start a thread of ``process``."""

        def live() -> None:
            with suppress(Gone):
                work()

        thread = _SimulatedThread(live, self._hub)
        thread.process = process
        self._resume(thread, self.now)

    def sleep(self, seconds: float) -> None:
        """Suspend the calling thread.

        Raises:
            Gone: its process died meanwhile.
        """
        thread = getcurrent()
        assert isinstance(thread, _SimulatedThread)
        if not thread.process.dead:
            self._resume(thread, self.now + max(0.0, seconds))
            self._hub.switch()
        if thread.process.dead:
            raise Gone

    def run(self, until: float, over: Callable[[], bool] = lambda: False) -> None:
        """Advance time to ``until``, or until ``over`` returns true."""
        while self._due and self._due[0][0] <= until and not over():
            moment, _, _, action = heapq.heappop(self._due)
            self.now = max(self.now, moment)
            action()

    def _resume(self, thread: _SimulatedThread, moment: float) -> None:
        def go() -> None:
            process = thread.process
            if self.now < process.frozen_until and not process.dead:
                self._resume(thread, process.frozen_until)
            else:
                thread.switch()

        self.at(moment, go)


class Lock:
    """Replaces ``threading.Lock``."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._taken = False

    def __enter__(self) -> None:
        while self._taken:
            self._timeline.sleep(0.01)
        self._taken = True

    def __exit__(self, *_: Any) -> None:
        self._taken = False


class Condition:
    """Replaces ``threading.Condition``, if nothing waits inside it except by ``wait``."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass

    def wait(self, seconds: float) -> None:
        """Return after ``seconds``; ``notify_all`` does not wake it earlier."""
        self._timeline.sleep(seconds)

    def notify_all(self) -> None:
        """Do nothing, as waiters poll."""
