"""One job as the status page shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from adapters.status_page.curve import LossCurve
from domain.job import PHASES, JobState
from domain.parameters import TrainingParameters
from domain.progress import Progress

_PARTS = (
    *("queue", "fetch", "encode", "first step", "steps", "measurements", "checkpoints"),
    *("previews", "upload", "call"),
)
"""Parts of a job, in order."""


@dataclass(kw_only=True)
class JobView:
    """State of a job from its events. Times are monotonic, in seconds."""

    task_id: str
    style_id: int
    attempt: int | None = None
    phase: str | None = None
    """None until the job has started."""
    received_at: float = 0.0
    phase_since: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    """Durations of finished phases."""
    part_seconds: dict[str, float] = field(default_factory=dict)
    """Durations of parts (``PartTimed``), and of the wait in the queue if known."""
    progress: Progress | None = None
    parameters: TrainingParameters | None = None
    images: int | None = None
    resumed_from: int | None = None
    """Epoch of the checkpoint from which this attempt resumed."""
    checkpoint: int | None = None
    """Epoch of the last checkpoint stored."""
    scores: tuple[float, float] | None = None
    """Closeness and faithfulness of the newest scored previews."""
    curve: LossCurve = field(default_factory=LossCurve)
    result: str | None = None
    """Outcome of the attempt; None while it runs."""
    code: str | None = None
    message: str | None = None
    seconds: float | None = None
    """Duration of the attempt, once it has ended."""
    ended_at: datetime | None = None
    eventful: bool = False
    """False if the attempt ended before anything happened, as when another worker has the job."""

    def enter(self, phase: str | None, now: float) -> None:
        """Enter a phase; None ends the last one."""
        if self.phase is not None and phase != self.phase:
            past = self.phase_seconds.get(self.phase, 0.0)
            self.phase_seconds[self.phase] = past + now - self.phase_since
        if phase != self.phase:
            self.phase, self.phase_since = phase, now

    def spend(self, part: str, seconds: float) -> None:
        """Add to the time of a part."""
        self.part_seconds[part] = self.part_seconds.get(part, 0.0) + max(0.0, seconds)

    def end(self, result: str, now: float, at: datetime, **why: str | None) -> None:
        """End the attempt."""
        self.eventful = self.phase is not None
        self.enter(None, now)
        self.result, self.seconds, self.ended_at = result, now - self.received_at, at
        self.code, self.message = why.get("code"), why.get("message")

    def shown(self, now: float) -> dict[str, Any]:
        """As JSON values, with the curve."""
        spent = dict(self.phase_seconds)
        if self.phase is not None:
            spent[self.phase] = spent.get(self.phase, 0.0) + now - self.phase_since
        return {
            **self.listed(now),
            "phases": [{"name": str(name), "seconds": spent.get(name)} for name in PHASES],
            "images": self.images,
            "parameters": None if self.parameters is None else asdict(self.parameters),
            "resumed_from": self.resumed_from,
            "checkpoint": self.checkpoint,
            "scores": self.scores,
            "curve": self.curve.points,
        }

    def listed(self, now: float) -> dict[str, Any]:
        """As JSON values, for the list of active jobs."""
        return {
            **self.summary(),
            "phase": self.phase,
            "elapsed": now - self.received_at if self.seconds is None else self.seconds,
            "progress": self._progress(),
        }

    def summary(self) -> dict[str, Any]:
        """As JSON values, for the list of past jobs."""
        progress = self.progress
        return {
            "task_id": self.task_id,
            "style_id": self.style_id,
            "attempt": self.attempt,
            "result": self.result,
            "code": self.code,
            "message": self.message,
            "seconds": self.seconds,
            "ended_at": None if self.ended_at is None else self.ended_at.isoformat(),
            "parts": self._parts(),
            "loss": None if progress is None else progress.loss,
            "epoch": None if progress is None else progress.current_epoch,
            "epochs": None if progress is None else progress.total_epochs,
        }

    def _parts(self) -> list[dict[str, Any]]:
        """Seconds of each part, in order; upload and call are the times of their phases."""
        ends = {
            name: self.phase_seconds[phase]
            for name, phase in (("upload", JobState.UPLOADING), ("call", JobState.NOTIFYING))
            if phase in self.phase_seconds
        }
        seconds = {**self.part_seconds, **ends}
        return [{"name": name, "seconds": seconds[name]} for name in _PARTS if name in seconds]

    def _progress(self) -> dict[str, Any] | None:
        progress = self.progress
        if progress is None:
            return None
        return {
            "percent": progress.percent,
            "epoch": progress.current_epoch,
            "epochs": progress.total_epochs,
            "step": progress.current_step,
            "steps": progress.total_steps,
            "loss": progress.loss,
            "measured_loss": progress.measured_loss,
            "base_loss": progress.base_loss,
            "steps_per_second": progress.steps_per_second,
            "seconds_left": progress.estimated_seconds,
        }
