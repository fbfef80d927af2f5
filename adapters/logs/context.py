"""Whose job a log line belongs to, on every line, from every thread of the job."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass

from application.settlement import Settlement
from domain.events import Event, JobStarted
from domain.task import TrainingTask


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
    and timers of a job are. It hears of the job in the job's own thread, as an event sink and as
    a watcher; put it on every handler, as a filter.

    Args:
        worker: this worker's name; None where there is no need to tell workers apart.
    """

    def __init__(self, worker: str | None = None) -> None:
        super().__init__()
        self.worker = worker
        self._job: ContextVar[_Job | None] = ContextVar("job", default=None)

    def __call__(self, event: Event) -> None:
        """Learn of the job from what happens to it."""
        job = self._job.get()
        if job is None or job.task_id != event.task_id:
            job = _Job(event.task_id, event.style_id)
            self._job.set(job)
        if isinstance(event, JobStarted):
            job.attempt = event.attempt

    def taken_up(self, task: TrainingTask) -> None:
        """The lines that follow belong to this task."""
        self._job.set(_Job(task.task_id, task.style_id))

    def put_down(self, _task: TrainingTask | None, _settlement: Settlement) -> None:
        """The lines that follow belong to no task."""
        self._job.set(None)

    def filter(self, record: logging.LogRecord) -> bool:
        """Mark the record; let it pass."""
        job = self._job.get()
        record.worker = self.worker
        record.task_id = job.task_id if job else None
        record.style_id = job.style_id if job else None
        record.attempt = job.attempt if job else None
        return True
