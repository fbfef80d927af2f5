"""Count and time jobs by their events."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from adapters.metrics.instruments import Metrics, result_of, suppress_errors
from application.event_bus import LeaseWritten, MessageSettled, TaskReceived, WorkerEvent
from application.fenced_blob import Superseded
from application.ports import BlobDenied, Unavailable
from application.settlement import Ack, DeadLetter, Requeue, RetryLater, Settlement
from domain.events import (
    CheckpointSaved,
    Event,
    JobFailed,
    JobInterrupted,
    JobStarted,
    PreviewsDrawn,
    ProgressMade,
    TrainingBegan,
)
from domain.job import PHASES, JobState, state_after

_SETTLEMENTS: dict[type[Settlement], str] = {
    Ack: "done",
    RetryLater: "retry_later",
    DeadLetter: "dead_letter",
    Requeue: "requeue",
}
_LEASE_ERRORS: dict[type[Exception], str] = {
    Superseded: "superseded",
    Unavailable: "unavailable",
    BlobDenied: "denied",
}


@dataclass
class _Job:
    slot: int
    """The lowest slot that was free when the task was received."""
    started: float | None = None
    phase: JobState | None = None
    phase_since: float = 0.0


class JobMetrics:
    """Port ``EventSink``: counts and times jobs. May be used from any thread.

    Metrics of concurrent jobs are labelled with a slot number, so that the number of series does
    not grow with the number of jobs.

    Args:
        monotonic: monotonic time in seconds.
    """

    def __init__(self, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self._metrics = metrics
        self._now = monotonic
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()

    def __call__(self, event: WorkerEvent) -> None:
        """Count the event. Never raises."""
        with self._lock:
            suppress_errors(lambda: self._note(event))
            suppress_errors(lambda: self._metrics.active_jobs.set(len(self._jobs)))

    def _note(self, event: WorkerEvent) -> None:
        if isinstance(event, MessageSettled):
            self._metrics.runs.labels(_SETTLEMENTS[type(event.settlement)]).inc()
            self._leave(event.task_id)
            return
        if isinstance(event, LeaseWritten):
            self._note_lease(event)
            return
        if isinstance(event, PreviewsDrawn):
            return  # not counted, and the job may have ended
        if event.task_id not in self._jobs:
            taken = {job.slot for job in self._jobs.values()}
            self._jobs[event.task_id] = _Job(next(n for n in count() if n not in taken))
        if not isinstance(event, TaskReceived):
            self._count(self._jobs[event.task_id], event)

    def _note_lease(self, event: LeaseWritten) -> None:
        self._metrics.lease_writes.labels(result_of(event.error, _LEASE_ERRORS)).inc()
        job = self._jobs.get(event.task_id)
        if job is not None and event.error is None:
            self._metrics.lease_expiry.labels(job.slot).set(event.expires_at.timestamp())

    def _count(self, job: _Job, event: Event) -> None:
        metrics = self._metrics
        match event:
            case JobStarted():
                resumed = "false" if event.resumed_from is None else "true"
                metrics.attempts.labels(resumed).inc()
                metrics.failures.set(0)
                job.started = self._now()
            case TrainingBegan():
                metrics.epochs.labels(job.slot).set(event.parameters.epochs)
                metrics.steps.labels(job.slot)  # create the series at 0
            case ProgressMade():
                self._show(job.slot, event)
            case CheckpointSaved():
                metrics.checkpoints.inc()
            case JobInterrupted():
                metrics.failures.set(event.failures)
        state = state_after(event)
        if state in PHASES:
            self._enter(job, state)
        elif state is not None:
            code = event.failure.code if isinstance(event, JobFailed) else "none"
            metrics.jobs.labels(state, code).inc()
            if job.started is not None:
                metrics.job_seconds.labels(state).observe(self._now() - job.started)
            self._leave(event.task_id)

    def _show(self, slot: int, event: ProgressMade) -> None:
        metrics, progress = self._metrics, event.progress
        metrics.steps.labels(slot).inc()
        metrics.epoch.labels(slot).set(progress.current_epoch)
        metrics.epochs.labels(slot).set(progress.total_epochs)
        metrics.progress.labels(slot).set(progress.current_step / max(1, progress.total_steps))
        if progress.loss is not None:
            metrics.loss.labels(slot).set(progress.loss)
        if progress.steps_per_second is not None:
            metrics.speed.labels(slot).set(progress.steps_per_second)
        if progress.estimated_seconds is not None:
            metrics.time_left.labels(slot).set(progress.estimated_seconds)

    def _enter(self, job: _Job, phase: JobState) -> None:
        if phase is not job.phase:
            self._time_phase(job)
            job.phase, job.phase_since = phase, self._now()
            self._metrics.show_phase(job.slot, phase)

    def _leave(self, task_id: str | None) -> None:
        job = self._jobs.pop(task_id or "", None)
        if job is not None:
            self._time_phase(job)
            self._metrics.clear_slot(job.slot)

    def _time_phase(self, job: _Job) -> None:
        if job.phase is not None:
            spent = self._now() - job.phase_since
            self._metrics.phase_seconds.labels(job.phase).observe(spent)
