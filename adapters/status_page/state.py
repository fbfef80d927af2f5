"""The state of a worker and its jobs, built from events, for the status page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from adapters.status_page.job_view import JobView
from adapters.status_page.past_jobs import PastJobs
from application.event_bus import MessageSettled, TaskReceived, WorkerEvent
from application.ports import Clock
from application.settlement import Ack, DeadLetter, Requeue, RetryLater
from domain.events import (
    CheckpointSaved,
    Event,
    JobFailed,
    JobInterrupted,
    JobStarted,
    PartTimed,
    PreviewsDrawn,
    PreviewsScored,
    ProgressMade,
    TrainingBegan,
)
from domain.job import PHASES, state_after


class WorkerState:
    """Port ``EventSink``. Uses bounded memory; may be used from any thread.

    Args:
        worker: this worker's name.
        version: of the program.
        stopping: returns whether the worker is shutting down.
    """

    def __init__(
        self,
        worker: str,
        version: str,
        clock: Clock,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._worker = worker
        self._version = version
        self._stopping = stopping
        self._began_at = clock.now()
        self._began = clock.monotonic()
        self._jobs: dict[str, JobView] = {}
        self._past = PastJobs()
        self._reporting: set[str] = set()
        """Completed tasks whose messages are not settled: their reports are being written."""
        self.device: str | None = None
        """The training device, once known."""
        self._model: str | None = None
        self._ready_after: float | None = None

    @property
    def model(self) -> str | None:
        """The base model, once it is loaded."""
        return self._model

    @model.setter
    def model(self, name: str) -> None:
        self._model, self._ready_after = name, self._clock.monotonic() - self._began

    def __call__(self, event: WorkerEvent) -> None:
        """Update the state."""
        with self._lock:
            if isinstance(event, MessageSettled):
                self._settle(event)
                return
            if not isinstance(event, Event) or isinstance(event, PreviewsDrawn):
                return  # not shown here, and the job may have ended
            if event.task_id not in self._jobs:
                self._jobs[event.task_id] = self._view(event.task_id, event.style_id)
            job = self._jobs[event.task_id]
            if not isinstance(event, TaskReceived):
                self._note(job, event)
            elif event.created_at is not None:
                job.spend("queue", (self._clock.now() - event.created_at).total_seconds())

    def _settle(self, event: MessageSettled) -> None:
        """End the job whose message is settled, unless an event has ended it."""
        self._reporting.discard(event.task_id or "")
        job = self._jobs.get(event.task_id or "")
        if job is None:
            if isinstance(event.settlement, DeadLetter) and event.task_id is not None:
                self._past.dead_letter(event.task_id, event.settlement.reason)
            return
        match event.settlement:
            case RetryLater(_, reason):
                self._end(job, "retry later", message=reason)
            case DeadLetter(reason):
                self._end(job, "dead letter", message=reason)
            case Requeue():
                self._end(job, "requeued")
            case Ack():  # a repeated message of a finished job
                del self._jobs[job.task_id]

    def snapshot(self, task_id: str | None = None) -> dict[str, Any]:
        """The whole state as JSON values.

        Args:
            task_id: the active job to show in full, as ``job``. None or an inactive one: the
                active job that started first. ``jobs`` lists all active jobs.
        """
        with self._lock:
            now, last = self._clock.monotonic(), self._past.last
            job = self._jobs.get(task_id or "") or next(iter(self._jobs.values()), None)
            return {
                "worker": {
                    "name": self._worker,
                    "version": self._version,
                    "device": self.device,
                    "model": self.model,
                    "began_at": self._began_at.isoformat(),
                    "up_seconds": now - self._began,
                    "ready_after": self._ready_after,
                    "state": self._state(),
                },
                "job": None if job is None else job.shown(now),
                "jobs": [job.listed(now) for job in self._jobs.values()],
                "last": None if last is None else last.shown(now),
                "recent": self._past.recent,
            }

    @property
    def stopping(self) -> bool:
        """True when the worker is shutting down and takes no further job."""
        return self._stopping()

    def _state(self) -> str:
        if self.stopping:
            return "stopping"
        phases = [job.phase or "preparing" for job in self._jobs.values()]
        if phases:
            # Of several phases, show training.
            return "training" if "training" in phases else phases[0]
        if self._reporting:
            return "reporting"
        return "starting" if self.model is None else "idle"

    def _view(self, task_id: str, style_id: int) -> JobView:
        now = self._clock.monotonic()
        return JobView(task_id=task_id, style_id=style_id, received_at=now, phase_since=now)

    def _note(self, job: JobView, event: Event) -> None:
        match event:
            case JobStarted():
                job.attempt = event.attempt
                if event.resumed_from is not None:
                    job.resumed_from = job.checkpoint = event.resumed_from.epoch
                    job.curve = self._past.curve(job.task_id, event.resumed_from.epoch)
            case TrainingBegan():
                job.parameters, job.images = event.parameters, event.image_count
            case ProgressMade():
                job.progress = event.progress
                if event.epoch_finished and event.progress.loss is not None:
                    job.curve.add(event.progress.current_epoch, event.progress.loss)
            case PreviewsScored():
                job.scores = event.scores.closeness, event.scores.faithfulness
            case CheckpointSaved():
                job.checkpoint = event.checkpoint.epoch
            case PartTimed():
                job.spend(event.part, event.seconds)
        state = state_after(event)
        if state in PHASES:
            job.enter(state, self._clock.monotonic())
        elif isinstance(event, JobFailed):
            self._end(job, str(state), code=event.failure.code, message=event.failure.message)
        elif isinstance(event, JobInterrupted):
            self._end(job, str(state), message=event.reason)
        elif state is not None:
            self._end(job, str(state))
            self._reporting.add(job.task_id)

    def _end(self, job: JobView, result: str, **why: str | None) -> None:
        del self._jobs[job.task_id]
        job.end(result, self._clock.monotonic(), self._clock.now(), **why)
        self._past.add(job)
