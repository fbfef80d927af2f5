"""Jobs, counted and timed by their events."""

from __future__ import annotations

import math
from collections.abc import Callable

from adapters.metrics.instruments import IDLE, Metrics, quietly
from application.settlement import DeadLetter, Done, HandBack, RetryLater, Settlement
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
    Done: "done",
    RetryLater: "retry_later",
    DeadLetter: "dead_letter",
    HandBack: "hand_back",
}


class JobMetrics:
    """Port ``EventSink``, and a watcher: what becomes of jobs, and how long it takes.

    Args:
        monotonic: seconds since some moment, never going back.
    """

    def __init__(self, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self._metrics = metrics
        self._now = monotonic
        self._started: float | None = None
        self._phase: JobState | None = None
        self._phase_since = 0.0

    def __call__(self, event: Event) -> None:
        """Count the event. Never raises."""
        quietly(lambda: self._count(event))

    def taken_up(self, task: TrainingTask) -> None:
        """Nothing is counted before something happens."""

    def put_down(self, _task: TrainingTask | None, settlement: Settlement) -> None:
        """Count the run, and leave what it left open."""
        quietly(lambda: self._metrics.runs.labels(_SETTLEMENTS[type(settlement)]).inc())
        quietly(self._rest)

    def _count(self, event: Event) -> None:
        metrics = self._metrics
        match event:
            case JobStarted():
                resumed = "false" if event.resumed_from is None else "true"
                metrics.attempts.labels(resumed).inc()
                self._started = self._now()
            case TrainingBegan():
                metrics.epochs.set(event.parameters.epochs)
            case ProgressMade():
                self._show(event)
            case CheckpointSaved():
                metrics.checkpoints.inc()
            case JobInterrupted():
                metrics.setbacks.set(event.setbacks)
        state = state_after(event)
        if state in PHASES:
            self._enter(state)
        elif state is not None:
            code = event.failure.code if isinstance(event, JobFailed) else "none"
            metrics.jobs.labels(state, code).inc()
            if self._started is not None:
                metrics.job_seconds.labels(state).observe(self._now() - self._started)
            self._rest()

    def _show(self, event: ProgressMade) -> None:
        metrics, progress = self._metrics, event.progress
        metrics.steps.inc()
        metrics.epoch.set(progress.current_epoch)
        metrics.epochs.set(progress.total_epochs)
        metrics.progress.set(progress.current_step / max(1, progress.total_steps))
        if progress.loss is not None:
            metrics.loss.set(progress.loss)
        if progress.steps_per_second is not None:
            metrics.speed.set(progress.steps_per_second)
        if progress.estimated_seconds is not None:
            metrics.time_left.set(progress.estimated_seconds)

    def _enter(self, phase: JobState | None) -> None:
        now = self._now()
        if self._phase is not None and phase is not self._phase:
            self._metrics.phase_seconds.labels(self._phase).observe(now - self._phase_since)
        if phase is not self._phase:
            self._phase, self._phase_since = phase, now
            self._metrics.show_phase(IDLE if phase is None else phase)

    def _rest(self) -> None:
        """No job is in hand: its gauges must not look like one."""
        self._enter(None)
        self._started = None
        metrics = self._metrics
        for gauge in (metrics.epoch, metrics.epochs, metrics.progress, metrics.speed):
            gauge.set(0)
        metrics.time_left.set(0)
        metrics.loss.set(math.nan)
