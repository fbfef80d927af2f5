"""The keys of all blobs that a worker writes."""

from __future__ import annotations

from dataclasses import dataclass

from domain.location import Bucket, Location

MODELS = "models/"
"""Key prefix of finished styles."""
JOBS = "jobs/"
"""Key prefix of job data."""
JOURNAL = "journal.json"
"""The job's durable record."""
TASK = "task.json"
"""The request of the first message with the task's id."""
LEASE = "lease.json"
CAPTIONS = "captions.json"
"""Generated captions."""
CANCELLATION = "cancel.json"
"""The request to cancel the job; absent unless one was made."""
REJECTION = "rejected.json"
"""The reason why a message with the task id was rejected."""


@dataclass(frozen=True)
class StorageKeys:
    """The keys of a job's blobs.

    ``jobs/<task_id>/`` holds the request, the journal, the lease, a request to cancel, captions,
    checkpoints and the styles of their epochs, the report with its previews, and the logs. The
    inference server reads ``models/style_<style_id>.safetensors``, or a folder for each task in
    ``models/style-<style_id>/``.
    """

    bucket: Bucket
    """Bucket of all blobs except the weights."""
    models: Bucket | None = None
    """Bucket of the weights; None: the same bucket."""
    report_prefix: str | None = None
    """Key prefix of reports; None stores each next to its job's journal."""
    weights_name: str | None = None
    """Fixed name of the finished style, for a single run; None names each style by its id."""

    def weights(self, style_id: int) -> Location:
        """The finished style."""
        name = self.weights_name or f"style_{style_id}"
        return self._models.at(f"{MODELS}{name}.safetensors")

    def weights_in_folder(self, style_id: int, task_id: str, name: str) -> Location:
        """One file of the finished style's folder. Each task has its own folder, so that readers
        never mix files of two trainings of a style."""
        return self._models.at(f"{MODELS}style-{style_id}/{task_id}/{name}")

    def is_weights(self, at: Location) -> bool:
        """Whether this or another worker version may have stored a finished style there."""
        return self._models == Bucket(at.bucket, at.scheme) and at.key.startswith(MODELS)

    def job(self, task_id: str, name: str) -> Location:
        """One of the job's files."""
        return self.bucket.at(f"{JOBS}{task_id}/{name}")

    def checkpoint(self, task_id: str, epoch: int, step: int) -> Location:
        """A checkpoint. Numbers are zero-padded, so that listings are in order."""
        return self.job(task_id, f"checkpoints/epoch_{epoch:05d}_step_{step:08d}.safetensors")

    def epoch_style(self, task_id: str, epoch: int) -> Location:
        """The weights at an epoch's checkpoint, for other programs."""
        return self.job(task_id, f"styles/epoch_{epoch:05d}.safetensors")

    def report(self, task_id: str, name: str) -> Location:
        """One file of the job's report, or one of the previews at checkpoints beside it."""
        if self.report_prefix is None:
            return self.job(task_id, f"report/{name}")
        return self.bucket.at(f"{self.report_prefix}{name}")

    def recorded_task(self, at: Location) -> str | None:
        """The task id of a journal's key; None for other keys."""
        task_id = at.key.removeprefix(JOBS).rpartition("/")[0]
        return task_id if task_id and at == self.job(task_id, JOURNAL) else None

    @property
    def _models(self) -> Bucket:
        return self.models or self.bucket
