"""The keys of all blobs that a worker writes."""

from __future__ import annotations

from dataclasses import dataclass

from domain.location import Bucket, Location

MODELS = "models/"
"""Key prefix of finished styles."""
JOBS = "jobs/"
"""Key prefix of job data."""


@dataclass(frozen=True)
class StorageKeys:
    """The keys of a job's blobs.

    ``jobs/<task_id>/`` holds the journal, the lease, a request to cancel, generated captions,
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

    def task(self, task_id: str) -> Location:
        """The request of the first message with this id."""
        return self._job(task_id, "task.json")

    def journal(self, task_id: str) -> Location:
        """The job's durable record."""
        return self._job(task_id, "journal.json")

    def lease(self, task_id: str) -> Location:
        """The job's lease."""
        return self._job(task_id, "lease.json")

    def captions(self, task_id: str) -> Location:
        """The captions made for the job's images."""
        return self._job(task_id, "captions.json")

    def cancellation(self, task_id: str) -> Location:
        """The request to cancel the job; absent unless one was made."""
        return self._job(task_id, "cancel.json")

    def rejection(self, task_id: str) -> Location:
        """The reason why a message with the task id was rejected."""
        return self._job(task_id, "rejected.json")

    def checkpoint(self, task_id: str, epoch: int, step: int) -> Location:
        """A checkpoint. Numbers are zero-padded, so that listings are in order."""
        return self._job(task_id, f"checkpoints/epoch_{epoch:05d}_step_{step:08d}.safetensors")

    def epoch_style(self, task_id: str, epoch: int) -> Location:
        """The weights at an epoch's checkpoint, for other programs."""
        return self._job(task_id, f"styles/epoch_{epoch:05d}.safetensors")

    def probe(self, name: str) -> Location:
        """A temporary blob for testing access to the bucket."""
        return self.bucket.at(f"{JOBS}check/{name}")

    def files_prefix(self, task_id: str) -> str:
        """Key prefix of all of a job's blobs except its weights."""
        return f"{JOBS}{task_id}/"

    def report(self, task_id: str, name: str) -> Location:
        """One file of the job's report."""
        if self.report_prefix is None:
            return self._job(task_id, f"report/{name}")
        return self.bucket.at(f"{self.report_prefix}{name}")

    def previews(self, task_id: str, epoch: int, number: int) -> Location:
        """One preview of an epoch's checkpoint, among the report's files."""
        return self.report(task_id, f"previews/epoch_{epoch:05d}_{number}.png")

    def preview_scores(self, task_id: str, epoch: int) -> Location:
        """The scores of an epoch's previews, beside them."""
        return self.report(task_id, f"previews/epoch_{epoch:05d}_scores.json")

    def previews_prefix(self, task_id: str) -> str:
        """Key prefix of a job's previews at checkpoints."""
        return self.report(task_id, "previews/epoch_").key

    def log(self, task_id: str, name: str) -> Location:
        """The log of one run of the job."""
        return self._job(task_id, f"logs/{name}")

    def recorded_task(self, at: Location) -> str | None:
        """The task id of a journal's key; None for other keys."""
        task_id = at.key.removeprefix(JOBS).rpartition("/")[0]
        return task_id if task_id and at == self.journal(task_id) else None

    @property
    def _models(self) -> Bucket:
        return self.models or self.bucket

    def _job(self, task_id: str, name: str) -> Location:
        return self.bucket.at(f"{JOBS}{task_id}/{name}")
