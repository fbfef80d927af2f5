"""Add the job to every log line, from every thread of the job."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass

from application.event_bus import MessageSettled, TaskReceived, WorkerEvent
from domain.events import JobStarted


@dataclass
class _Job:
    """The job of a thread. Threads started from it share the object, and so its updates."""

    task_id: str
    style_id: int
    attempt: int | None = None
    """Known once the job has started."""


class LogContext(logging.Filter):
    """Adds worker, task, style and attempt to every record.

    Concurrent jobs run in separate threads. The job is a context variable of its thread, and of
    pools and timers that run in a copy of the context (``contextvars.copy_context``). Use this
    object as event sink, called in the job's thread, and as filter of every handler.

    Args:
        worker: this worker's name; None to omit it.
    """

    def __init__(self, worker: str | None = None) -> None:
        super().__init__()
        self.worker = worker
        self._job: ContextVar[_Job | None] = ContextVar("job", default=None)

    def __call__(self, event: WorkerEvent) -> None:
        """Set the job of this thread's following lines."""
        match event:
            case TaskReceived():
                self._job.set(_Job(event.task_id, event.style_id))
            case JobStarted():
                job = self._job.get()
                if job is not None and job.task_id == event.task_id:
                    job.attempt = event.attempt
            case MessageSettled():
                self._job.set(None)

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields to the record; always True."""
        job = self._job.get()
        record.worker = self.worker
        record.task_id = job.task_id if job else None
        record.style_id = job.style_id if job else None
        record.attempt = job.attempt if job else None
        return True
