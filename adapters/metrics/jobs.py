"""Jobs, counted and timed by their events."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from adapters.metrics.instruments import Metrics, suppress_errors
from application.active_jobs import ActiveJobs
from application.settlement import Ack, DeadLetter, Requeue, RetryLater, Settlement
from domain.events import (
    CheckpointSaved,
    Event,
    JobFailed,
    JobInterrupted,
    JobStarted,
    ProgressMade,
    TrainingBegan,
)
from domain.job import JobState
from domain.phases import PHASES, state_after
from domain.task import TrainingTask

_SETTLEMENTS: dict[type[Settlement], str] = {
    Ack: "done",
    RetryLater: "retry_later",
    DeadLetter: "dead_letter",
    Requeue: "requeue",
}


@dataclass
class _Job:
    slot: int
    """The lowest that was free when the job was taken up."""
    started: float | None = None
    phase: JobState | None = None
    phase_since: float = 0.0


class JobMetrics:
    """Port ``EventSink``, and a watcher: what becomes of jobs, and how long it takes.

    May be used from any thread. Jobs side by side are told apart by their slots, so that there are
    as many series as there are jobs in hand at a time, however many come.

    Args:
        monotonic: seconds since some moment, never going back.
    """

    def __init__(self, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self._metrics = metrics
        self._now = monotonic
        self._hands: ActiveJobs[_Job] = ActiveJobs()
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Count the event. Never raises."""
        with self._lock:
            suppress_errors(lambda: self._count(event))
            self._show_hands()

    def taken_up(self, task: TrainingTask) -> None:
        """Give the job a slot. Nothing more is counted before something happens."""
        with self._lock:
            self._hands.take_up(task.task_id, self._seated)
            self._show_hands()

    def lease_written(self, task_id: str, at: float) -> None:
        """A job's lease was written, at a moment in Unix time; shown while the job is in hand."""
        with self._lock:
            job = self._hands.get(task_id)
            if job is not None:
                self._metrics.lease_written.labels(job.slot).set(at)

    def put_down(self, task: TrainingTask | None, settlement: Settlement) -> None:
        """Count the run, and leave what it left open."""
        suppress_errors(lambda: self._metrics.runs.labels(_SETTLEMENTS[type(settlement)]).inc())
        with self._lock:
            job = self._hands.put_down(None if task is None else task.task_id)
            if job is not None:
                suppress_errors(lambda: self._leave(job))
            self._show_hands()

    def _seated(self) -> _Job:
        taken = {job.slot for job in self._hands}
        return _Job(next(slot for slot in count() if slot not in taken))

    def _show_hands(self) -> None:
        suppress_errors(lambda: self._metrics.active_jobs.set(len(self._hands)))

    def _count(self, event: Event) -> None:
        metrics = self._metrics
        job = self._hands.hear(event.task_id, self._seated)
        match event:
            case JobStarted():
                resumed = "false" if event.resumed_from is None else "true"
                metrics.attempts.labels(resumed).inc()
                job.started = self._now()
            case TrainingBegan():
                metrics.epochs.labels(job.slot).set(event.parameters.epochs)
                metrics.steps.labels(job.slot)  # at 0, as all counters begin
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
            self._hands.end(event.task_id)
            metrics.jobs.labels(state, code).inc()
            if job.started is not None:
                metrics.job_seconds.labels(state).observe(self._now() - job.started)
            self._leave(job)

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

    def _leave(self, job: _Job) -> None:
        self._time_phase(job)
        self._metrics.clear_slot(job.slot)

    def _time_phase(self, job: _Job) -> None:
        if job.phase is not None:
            spent = self._now() - job.phase_since
            self._metrics.phase_seconds.labels(job.phase).observe(spent)
