"""Many listeners as one, none of which can disturb the work or another listener."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

from application.ports import EventSink
from application.settlement import Settlement
from domain.events import Event
from domain.task import TrainingTask

log = logging.getLogger(__name__)


class EventBus:
    """Port ``EventSink``: passes each event on to every sink, in their order."""

    def __init__(self, *sinks: EventSink) -> None:
        self._sinks = sinks

    def __call__(self, event: Event) -> None:
        """Tell everybody; what a listener raises is logged."""
        for sink in self._sinks:
            _tell(partial(sink, event), event)


class Watcher(Protocol):
    """Somebody who wants to know when a worker's hands are full: a log context, a display.

    Events tell what becomes of a job; these calls tell what a worker does about it, the runs
    in which nothing becomes of the job included. Where several jobs are in hand at once, each is
    told of from its own thread.
    """

    def taken_up(self, task: TrainingTask, /) -> None:
        """The worker is about to run the task."""

    def put_down(self, task: TrainingTask | None, settlement: Settlement, /) -> None:
        """The worker is done with the message for now; it may have described no task."""


class Watchers:
    """Passes on to every watcher, in their order."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def taken_up(self, task: TrainingTask) -> None:
        """Tell everybody; what a watcher raises is logged."""
        for watcher in self._watchers:
            _tell(partial(watcher.taken_up, task), task)

    def put_down(self, task: TrainingTask | None, settlement: Settlement) -> None:
        """Tell everybody; what a watcher raises is logged."""
        for watcher in self._watchers:
            _tell(partial(watcher.put_down, task, settlement), settlement)


def _tell(listen: Callable[[], None], what: object) -> None:
    try:
        listen()
    except Exception:
        log.exception("a listener failed at %s", type(what).__name__)
