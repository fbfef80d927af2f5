"""The event stream for observers: events of jobs (``domain.events``), messages, leases."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from application.settlement import Settlement
from domain.events import Event

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TaskReceived(Event):
    """A worker begins to process a message. Sent in the processing thread."""

    created_at: datetime | None = None
    """When the task was published, if the message says so."""


@dataclass(frozen=True, kw_only=True)
class MessageSettled:
    """A worker has settled a message. Sent in the processing thread."""

    task_id: str | None
    """None for a second delivery of a task that the worker is still processing."""
    settlement: Settlement


@dataclass(frozen=True, kw_only=True)
class LeaseWritten:
    """A worker has acquired, renewed or released the lease of a job, or could not write it."""

    task_id: str
    expires_at: datetime
    error: Exception | None
    """Why the lease is not written; None if it is."""


WorkerEvent: TypeAlias = Event | MessageSettled | LeaseWritten


EventSink: TypeAlias = Callable[[WorkerEvent], None]
"""An observer: log, metrics, status page, progress bar. Must not raise."""


class EventBus:
    """Port ``EventSink``: passes each event to every observer, in the order of the list."""

    def __init__(self, *observers: EventSink) -> None:
        self._observers = observers

    def __call__(self, event: WorkerEvent) -> None:
        """Pass the event on. Exceptions of observers are logged."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                log.exception("an event observer failed on %s", type(event).__name__)
