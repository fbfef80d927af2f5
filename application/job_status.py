"""A job's status, read from the store alone, without a worker or queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from application.job_store import JobStore
from domain.job import TrainingJob


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """The recorded status of a task."""

    task_id: str
    job: TrainingJob | None
    """None: no worker has started the task."""
    worker: str | None
    """The worker that holds the lease; None if the lease is free or expired."""
    cancelling: bool
    """Whether a cancellation was requested."""
    rejection: Mapping[str, str] | None = None
    """Field, value, remedy and reason, if a message with this id was rejected."""
    backend_notified: bool = False
    """Whether the backend was notified of the rejection."""

    @property
    def state(self) -> str:
        """The job's state, else ``rejected`` or ``unknown``."""
        if self.job is not None:
            return str(self.job.state)
        return "unknown" if self.rejection is None else "rejected"


def job_status(task_id: str, store: JobStore) -> JobStatus:
    """Read the status of a task. Raises as ``JobStore``."""
    rejection = store.rejection(task_id)
    record = None if rejection is None else store.read_job(rejection.get("record", task_id))
    return JobStatus(
        task_id=task_id,
        job=store.read_job(task_id),
        worker=store.lease_owner(task_id),
        cancelling=store.cancellation_requested(task_id),
        rejection=rejection,
        backend_notified=record is not None and record.is_terminal,
    )
