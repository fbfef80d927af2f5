"""Whose job a log line belongs to, on every line, from every thread of the job."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass

from application.event_bus import MessageSettled, TaskReceived, WorkerEvent
from domain.events import JobStarted


@dataclass
class _Job:
    """The job that a thread is at. Threads that it starts share it, so that they learn, too."""

    task_id: str
    style_id: int
    attempt: int | None = None
    """Known once the job has been taken up."""


class LogContext(logging.Filter):
    """Puts worker, task, style and attempt on every record that passes.

    A worker may run several jobs at once, each in a thread of its own: the job follows the thread,
    and whatever is called in a copy of its context (``contextvars.copy_context``), as the pools
    and timers of a job are. It is an observer of events, which are sent in the job's own thread,
    and a filter for every handler.

    Args:
        worker: this worker's name; None where there is no need to tell workers apart.
    """

    def __init__(self, worker: str | None = None) -> None:
        super().__init__()
        self.worker = worker
        self._job: ContextVar[_Job | None] = ContextVar("job", default=None)

    def __call__(self, event: WorkerEvent) -> None:
        """Note which task the following lines of this thread belong to."""
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
        """Mark the record; let it pass."""
        job = self._job.get()
        record.worker = self.worker
        record.task_id = job.task_id if job else None
        record.style_id = job.style_id if job else None
        record.attempt = job.attempt if job else None
        return True
