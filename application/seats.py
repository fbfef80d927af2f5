"""Who may train now: one run, or as many of one kind as the device has seats for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from application.patience import ATTENTION
from application.stop import StopSignal


class Seats:
    """First come, first served: nobody overtakes a run that waits for others to end.

    Else runs of the kind that trains already could keep one of another kind waiting for ever.

    Args:
        count: runs of one kind at a time.
    """

    def __init__(self, count: int = 1) -> None:
        self._count = count
        self._changed = threading.Condition()
        self._taken: list[Hashable | None] = []
        self._line: list[object] = []

    @contextmanager
    def taken(
        self, kind: Hashable | None, stop: StopSignal, waiting: Callable[[], None]
    ) -> Iterator[None]:
        """A seat, as soon as there is one for a run of this kind; given up on leaving.

        Args:
            kind: ``Trainer.kind``; a run of kind None trains alone.
            waiting: called once where no seat is free at once.

        Raises:
            Stopped: a stop was asked for before there was a seat.
        """
        self._wait(kind, stop, waiting)
        try:
            yield
        finally:
            with self._changed:
                self._taken.remove(kind)
                self._changed.notify_all()

    def _wait(self, kind: Hashable | None, stop: StopSignal, waiting: Callable[[], None]) -> None:
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            at_once = self._free_for(kind, ticket)
        try:
            if not at_once:
                waiting()
            with self._changed:
                while not self._free_for(kind, ticket):
                    stop.check()
                    self._changed.wait(ATTENTION)
                self._taken.append(kind)
        finally:
            with self._changed:
                self._line.remove(ticket)
                self._changed.notify_all()

    def _free_for(self, kind: Hashable | None, ticket: object) -> bool:
        if self._line[0] is not ticket:
            return False
        alike = kind is not None and all(other == kind for other in self._taken)
        return not self._taken or (alike and len(self._taken) < self._count)
