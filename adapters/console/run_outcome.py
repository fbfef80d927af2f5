"""The outcome of a local run as JSON values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from domain.job import JobState, TrainingJob


def report_files(out: Path) -> list[Path]:
    """The files of a finished run's report."""
    names = ("report.html", "previews.png", "loss.png")
    return [out / name for name in names if (out / name).exists()]


def outcome_values(job: TrainingJob, out: Path) -> dict[str, Any]:
    """The outcome of a run, for ``--json``."""
    done = job.state is JobState.COMPLETED
    return {
        "result": str(job.state),
        "task_id": job.task_id,
        "style_id": job.style_id,
        "weights": str(out / job.artifact.location.key) if job.artifact else None,
        "sha256": job.artifact.sha256 if job.artifact else None,
        "bytes": job.artifact.size if job.artifact else None,
        "loss": job.metric.loss if job.metric else None,
        "measured_loss": job.metric.measured_loss if job.metric else None,
        "base_loss": job.metric.base_loss if job.metric else None,
        "epochs": job.metric.epochs if job.metric else None,
        "delivered_epoch": job.metric.delivered_epoch if job.metric else None,
        "steps": job.metric.steps if job.metric else None,
        "report": [str(path) for path in report_files(out)] if done else [],
        "checkpoint_epoch": job.checkpoint.epoch if job.checkpoint else None,
        "code": job.failure.code if job.failure else None,
        "message": job.failure.message if job.failure else None,
    }
