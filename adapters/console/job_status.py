"""The output of the ``status`` command: JSON values, or lines of text."""

from __future__ import annotations

from typing import Any

from application.job_status import JobStatus
from application.journal import encode_job
from domain.job import JobState, TrainingJob


def as_values(status: JobStatus) -> dict[str, Any]:
    """JSON values: the job's record, lease, cancellation and rejection."""
    record = None if status.job is None else encode_job(status.job)
    return {
        "task_id": status.task_id,
        "state": status.state,
        "worker": status.worker,
        "cancelling": status.cancelling,
        "rejection": None if status.rejection is None else dict(status.rejection),
        "job": record,
    }


def in_words(status: JobStatus) -> list[str]:
    """The status as lines of text for an operator."""
    job = status.job
    if job is None and status.rejection is not None:
        known = "was notified" if status.backend_notified else "was not notified, or not yet"
        lines = [
            f"task {status.task_id}: rejected; the backend {known}",
            f"  {status.rejection.get('reason', '')}",
        ]
    elif job is None:
        lines = [
            f"task {status.task_id}: no worker has started it: "
            "its message is still in the queue, or the id is wrong"
        ]
    else:
        head = f"task {status.task_id}, style {job.style_id}: {_WORDS[job.state]}"
        lines = [head, *(f"  {line}" for line in _details(job))]
        if status.worker is not None:
            does = "writes its report" if job.state is JobState.COMPLETED else "runs it"
            lines.append(f"  worker {status.worker} {does}")
        elif not job.is_terminal:
            lines.append(
                "  no worker runs it now: its message is in the queue or among the dead letters"
            )
    if status.cancelling and (job is None or not job.is_terminal):
        lines.append("  a cancellation was requested")
    return lines


_WORDS = {
    JobState.QUEUED: "not started",
    JobState.PREPARING: "images are being fetched and checked",
    JobState.TRAINING: "training",
    JobState.UPLOADING: "trained; the weights are being stored",
    JobState.NOTIFYING: "finished; the backend is being notified",
    JobState.COMPLETED: "completed; the backend was notified",
    JobState.FAILED: "failed; the backend was notified",
    JobState.CANCELLED: "cancelled; the backend was notified",
    JobState.INTERRUPTED: "interrupted; a worker will resume it",
}


def _details(job: TrainingJob) -> list[str]:
    lines = []
    if job.attempt:
        failures = f", failures since the last checkpoint: {job.failures}" * bool(job.failures)
        lines.append(f"attempt {job.attempt}{failures}")
    if job.progress is not None and job.artifact is None:
        at = job.progress
        lines.append(f"epoch {at.current_epoch} of {at.total_epochs} ({at.percent} %)")
    if job.checkpoint is not None and job.artifact is None:
        lines.append(f"last checkpoint: epoch {job.checkpoint.epoch}")
    if job.artifact is not None:
        lines.append(f"weights: {job.artifact.location}, {job.artifact.size} bytes")
    if job.metric is not None:
        lines.append(f"loss {job.metric.loss:.4f} after {job.metric.epochs} epochs")
    if job.failure is not None:
        lines.append(f"{job.failure.code}: {job.failure.message}")
    if job.notifications:
        lines.append(f"tries to send the outcome webhook: {job.notifications}")
    return lines
