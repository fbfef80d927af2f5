"""The one thread that uses the device. Other threads submit work and wait for the result."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

from adapters.common.device_errors import is_broken_device
from application.ports import TrainerBroken

Run = TypeVar("Run")
Report = TypeVar("Report")
Result = TypeVar("Result")

MAX_WAIT = 0.02
"""Maximum number of seconds that a short step waits for the runs of the last step."""
_SHARE_OF_STEP = 0.5
"""Maximum wait of a long step, as a share of the last step's duration: beyond it, a step without
the late runs is faster overall."""


class DeviceThread(Generic[Run, Report]):
    """Runs work in order of arrival, and one step at a time for all runs that are ready for it.

    A step waits for the runs of the last step. A late run (it stores a checkpoint or draws
    previews) is left out until it next calls ``step``.

    Args:
        take_step: trains the next step of some runs; returns each one's report or error.
        max_wait: maximum number of seconds that a short step waits for the runs of the last one.
    """

    def __init__(
        self,
        take_step: Callable[[Sequence[Run]], Mapping[Run, Report | Exception]],
        max_wait: float = MAX_WAIT,
    ) -> None:
        self._take_step = take_step
        self._max_wait = max_wait
        self._changed = threading.Condition()
        """Lock of everything below."""
        self._users = 0
        self._thread: threading.Thread | None = None
        self._calls: deque[tuple[float, Callable[[], None]]] = deque()
        """With arrival times."""
        self._ready: dict[Run, Future[Report]] = {}
        """Runs waiting for a step, since ``_ready_since``."""
        self._ready_since = 0.0
        self._expected: set[Run] = set()
        self._duration = 0.0

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keep the thread running during the with-block. It ends with its last user."""
        with self._changed:
            self._users += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="device", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def call(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in the thread.

        Raises:
            TrainerBroken: the device failed and can no longer be used.
            Exception: any error of ``work``.
        """
        done: Future[Result] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # raised in the waiting thread
                done.set_exception(_as_trainer_broken(error))

        with self._changed:
            self._calls.append((time.monotonic(), run))
            self._changed.notify_all()
        return done.result()

    def step(self, run: Run) -> Report:
        """Wait until a step with this run has been trained.

        Raises:
            TrainerBroken: the device failed and can no longer be used.
            Exception: the error that ``take_step`` returned for this run, or raised.
        """
        done: Future[Report] = Future()
        with self._changed:
            if not self._ready:
                self._ready_since = time.monotonic()
            self._ready[run] = done
            self._changed.notify_all()
        return done.result()

    def add_run(self, run: Run) -> None:
        """Make the next step wait for this run."""
        with self._changed:
            self._expected.add(run)

    def remove_run(self, run: Run) -> None:
        """Do not wait for this run until it calls ``step``."""
        with self._changed:
            self._expected.discard(run)
            self._changed.notify_all()

    def _serve(self) -> None:
        while (work := self._next()) is not None:
            work()

    def _next(self) -> Callable[[], None] | None:
        """Wait for the next work; None if there are no users left."""
        with self._changed:
            while self._users or self._calls or self._ready:
                wait = None
                if self._ready:
                    limit = max(self._max_wait, _SHARE_OF_STEP * self._duration)
                    missing = not self._expected <= self._ready.keys()
                    wait = self._ready_since + limit - time.monotonic() if missing else 0.0
                    if wait <= 0 and not (self._calls and self._calls[0][0] < self._ready_since):
                        ready, self._ready = self._ready, {}
                        self._expected = set(ready)
                        return partial(self._step_all, ready)
                if self._calls:
                    return self._calls.popleft()[1]
                self._changed.wait(wait)
            self._thread = None
            return None

    def _step_all(self, ready: Mapping[Run, Future[Report]]) -> None:
        began = time.monotonic()
        outcomes: Mapping[Run, Report | BaseException]
        try:
            outcomes = self._take_step(list(ready))
        except BaseException as error:  # raised for each run, in its own thread
            outcomes = dict.fromkeys(ready, error)
        with self._changed:
            self._duration = time.monotonic() - began
        for run, done in ready.items():
            outcome = outcomes[run]
            if isinstance(outcome, BaseException):
                done.set_exception(_as_trainer_broken(outcome))
            else:
                done.set_result(outcome)


def _as_trainer_broken(error: BaseException) -> BaseException:
    """``TrainerBroken`` if the error means that the device can no longer be used."""
    if not is_broken_device(error):
        return error
    broken = TrainerBroken(str(error).partition("\n")[0])
    broken.__cause__ = error
    return broken
