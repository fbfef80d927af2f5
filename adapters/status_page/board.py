"""What this worker is at, put together from events; read by whoever looks at the page."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from adapters.status_page.job_view import JobView
from application.ports import Clock
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
from domain.phases import PHASES, state_after
from domain.task import TrainingTask

RECENT_JOBS = 20


class StatusBoard:
    """Port ``EventSink``, and a watcher. Small whatever happens; may be used from any thread.

    Args:
        worker: this worker's name.
        version: of the program.
        stopping: whether the worker takes no further job.
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
        self._current: JobView | None = None
        self._last: JobView | None = None
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_JOBS)
        self.device: str | None = None
        """What it trains on, once that is known."""
        self.model: str | None = None
        """The base model, once it is loaded."""

    def taken_up(self, task: TrainingTask) -> None:
        """The worker looks at a task."""
        with self._lock:
            self._current = self._view(task.task_id, task.style_id)

    def put_down(self, _task: TrainingTask | None, settlement: Settlement) -> None:
        """The worker is done with it for now; where no event said so, this is its end."""
        with self._lock:
            job = self._current
            if job is None:
                return
            match settlement:
                case RetryLater(_, reason):
                    self._end("put aside", message=reason)
                case DeadLetter(reason):
                    self._end("dead letter", message=reason)
                case HandBack():
                    self._end("handed back")
                case Done():
                    self._current = None  # it was over before; a repeated message is no job

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        with self._lock:
            job = self._current
            if job is None or job.task_id != event.task_id:
                job = self._current = self._view(event.task_id, event.style_id)
            self._note(job, event)
            state = state_after(event)
            if state in PHASES:
                job.enter(state, self._clock.monotonic())
            elif isinstance(event, JobFailed):
                self._end(str(state), code=event.failure.code, message=event.failure.message)
            elif isinstance(event, JobInterrupted):
                self._end(str(state), message=event.reason)
            elif state is not None:
                self._end(str(state))

    def snapshot(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        with self._lock:
            now, job, last = self._clock.monotonic(), self._current, self._last
            return {
                "worker": {
                    "name": self._worker,
                    "version": self._version,
                    "device": self.device,
                    "model": self.model,
                    "began_at": self._began_at.isoformat(),
                    "up_seconds": now - self._began,
                    "state": self._state(),
                },
                "job": None if job is None else job.shown(now),
                "last": None if last is None else last.shown(now),
                "recent": list(self._recent),
            }

    @property
    def stopping(self) -> bool:
        """True when the worker takes no further job."""
        return self._stopping()

    def _state(self) -> str:
        if self.stopping:
            return "stopping"
        if self._current is not None:
            return self._current.phase or "preparing"
        return "starting" if self.model is None else "idle"

    def _view(self, task_id: str, style_id: int) -> JobView:
        now = self._clock.monotonic()
        return JobView(task_id=task_id, style_id=style_id, taken_up=now, phase_since=now)

    def _note(self, job: JobView, event: Event) -> None:
        match event:
            case JobStarted():
                job.attempt = event.attempt
                if event.resumed_from is not None:
                    job.resumed_from = job.checkpoint = event.resumed_from.epoch
                    last = self._last
                    if last is not None and last.task_id == job.task_id:
                        job.curve = last.curve
                        job.curve.go_back(event.resumed_from.epoch)
            case TrainingBegan():
                job.parameters, job.pictures = event.parameters, event.picture_count
            case ProgressMade():
                job.progress = event.progress
                if event.epoch_finished and event.progress.loss is not None:
                    job.curve.add(event.progress.current_epoch, event.progress.loss)
            case CheckpointSaved():
                job.checkpoint = event.checkpoint.epoch

    def _end(self, result: str, **why: str | None) -> None:
        job = self._current
        assert job is not None  # every caller has just seen it
        happened = job.phase is not None
        job.end(result, self._clock.monotonic(), self._clock.now(), **why)
        summary = job.summary()
        if self._recent and _repeats(summary, self._recent[0]):
            self._recent.popleft()
        self._recent.appendleft(summary)
        if happened:
            self._last = job
        self._current = None


def _repeats(summary: dict[str, Any], earlier: dict[str, Any]) -> bool:
    """Whether a task was only looked at again: while another worker has it, every minute."""
    return all(
        job["result"] == "put aside"
        and job["task_id"] == summary["task_id"]
        and not job["attempt"]
        for job in (summary, earlier)
    )
