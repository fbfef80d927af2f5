"""Limit concurrent runs: one run, or several with one batch key up to the number of slots."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from application.retry import POLL_SECONDS
from application.stop_signal import StopSignal


class AdmissionQueue:
    """Admits runs in their order of arrival.

    A run never overtakes an earlier one: otherwise runs with the current batch key could keep a
    run with another key waiting forever.

    Args:
        count: number of slots for concurrent runs with one batch key.
    """

    def __init__(self, count: int = 1) -> None:
        self._count = count
        self._changed = threading.Condition()
        self._taken: list[Hashable | None] = []
        self._line: list[object] = []

    @contextmanager
    def hold(
        self, batch_key: Hashable | None, stop: StopSignal, on_wait: Callable[[], None]
    ) -> Iterator[None]:
        """Wait for a slot for a run with this batch key, and hold it while the context is open.

        Args:
            batch_key: ``Trainer.batch_key`` of the run.
            on_wait: called once if the run has to wait.

        Raises:
            Stopped: a stop was requested before a slot was free.
        """
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            at_once = self._free_for(batch_key, ticket)
        try:
            if not at_once:
                on_wait()
            with self._changed:
                while not self._free_for(batch_key, ticket):
                    stop.check()
                    self._changed.wait(POLL_SECONDS)
                self._taken.append(batch_key)
        finally:
            with self._changed:
                self._line.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken.remove(batch_key)
                self._changed.notify_all()

    def _free_for(self, batch_key: Hashable | None, ticket: object) -> bool:
        if self._line[0] is not ticket:
            return False
        alike = batch_key is not None and all(other == batch_key for other in self._taken)
        return not self._taken or (alike and len(self._taken) < self._count)
