"""Whose job a log line belongs to, on every line, from every thread."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from application.settlement import Settlement
from domain.events import Event, JobStarted
from domain.task import TrainingTask


@dataclass(frozen=True)
class JobInHand:
    """The job that the worker is at."""

    task_id: str
    style_id: int
    attempt: int | None = None
    """Known once the job has been taken up."""


class LogContext(logging.Filter):
    """Puts worker, task, style and attempt on every record that passes.

    A worker runs one job at a time, so one value for the whole process is right for the pools
    and timers, too. It hears of the job as an event sink and as a watcher; put it on every
    handler, as a filter.

    Args:
        worker: this worker's name; None where there is no need to tell workers apart.
    """

    def __init__(self, worker: str | None = None) -> None:
        super().__init__()
        self.worker = worker
        self._job: JobInHand | None = None

    def __call__(self, event: Event) -> None:
        """Learn of the job from what happens to it."""
        job = self._job
        if job is None or job.task_id != event.task_id:
            job = JobInHand(event.task_id, event.style_id)
        if isinstance(event, JobStarted):
            job = JobInHand(event.task_id, event.style_id, event.attempt)
        self._job = job

    def taken_up(self, task: TrainingTask) -> None:
        """The lines that follow belong to this task."""
        self._job = JobInHand(task.task_id, task.style_id)

    def put_down(self, _task: TrainingTask | None, _settlement: Settlement) -> None:
        """The lines that follow belong to no task."""
        self._job = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Mark the record; let it pass."""
        job = self._job
        record.worker = self.worker
        record.task_id = job.task_id if job else None
        record.style_id = job.style_id if job else None
        record.attempt = job.attempt if job else None
        return True
