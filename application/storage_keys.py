"""Where a worker keeps what: the one place that knows the keys of our blobs."""

from __future__ import annotations

from dataclasses import dataclass

from domain.location import Bucket, Location

MODELS = "models/"
"""What the keys of finished styles start with."""
JOBS = "jobs/"
"""What the keys of all that belongs to a job start with."""


@dataclass(frozen=True)
class StorageKeys:
    """The keys of everything that is written for a job.

    ``jobs/<task_id>/`` holds the journal, the lease, a request to cancel, checkpoints and the
    styles of their epochs, the report with its previews, and the logs.
    ``models/style_<style_id>.safetensors``, or a folder for each task in
    ``models/style-<style_id>/``, is what the inference server reads.
    """

    bucket: Bucket
    """Where all but the weights goes."""
    models: Bucket | None = None
    """Where the weights go; None: the same bucket."""
    report_prefix: str | None = None
    """Where reports go; None puts each beside its job's journal."""
    weights_name: str | None = None
    """The name of every finished style, where only one is made; None names each by its id."""

    def weights(self, style_id: int) -> Location:
        """The finished style."""
        name = self.weights_name or f"style_{style_id}"
        return self._models.at(f"{MODELS}{name}.safetensors")

    def weights_in_folder(self, style_id: int, task_id: str, name: str) -> Location:
        """One file of the finished style's folder. A style that is trained anew gets another
        folder, so that nobody reads files of two."""
        return self._models.at(f"{MODELS}style-{style_id}/{task_id}/{name}")

    def is_weights(self, at: Location) -> bool:
        """Whether a finished style may lie there; also one that another version of us stored."""
        return self._models == Bucket(at.bucket, at.scheme) and at.key.startswith(MODELS)

    def task(self, task_id: str) -> Location:
        """What the first message with this id asked for."""
        return self._job(task_id, "task.json")

    def journal(self, task_id: str) -> Location:
        """The job's durable record."""
        return self._job(task_id, "journal.json")

    def lease(self, task_id: str) -> Location:
        """Who works on the job."""
        return self._job(task_id, "lease.json")

    def cancellation(self, task_id: str) -> Location:
        """Present when somebody wants the job stopped."""
        return self._job(task_id, "cancel.json")

    def rejection(self, task_id: str) -> Location:
        """Why a message with the task's id was rejected."""
        return self._job(task_id, "rejected.json")

    def checkpoint(self, task_id: str, epoch: int, step: int) -> Location:
        """One moment of the run. Zero-padded, so that listing gives them in order."""
        return self._job(task_id, f"checkpoints/epoch_{epoch:05d}_step_{step:08d}.safetensors")

    def style_at(self, task_id: str, epoch: int) -> Location:
        """The style as it was at an epoch's checkpoint, for other programs."""
        return self._job(task_id, f"styles/epoch_{epoch:05d}.safetensors")

    def probe(self, name: str) -> Location:
        """A blob that is written to find out whether blobs can be, and removed again."""
        return self.bucket.at(f"{JOBS}check/{name}")

    def checkpoints_prefix(self, task_id: str) -> str:
        """What the keys of a job's checkpoints start with."""
        return f"{JOBS}{task_id}/checkpoints/"

    def styles_prefix(self, task_id: str) -> str:
        """What the keys of the styles at a job's checkpoints start with."""
        return f"{JOBS}{task_id}/styles/"

    def report(self, task_id: str, name: str) -> Location:
        """One file of the job's report."""
        if self.report_prefix is None:
            return self._job(task_id, f"report/{name}")
        return self.bucket.at(f"{self.report_prefix}{name}")

    def previews(self, task_id: str, epoch: int, number: int) -> Location:
        """One preview drawn at an epoch's checkpoint, among the report's files."""
        return self.report(task_id, f"previews/epoch_{epoch:05d}_{number}.png")

    def previews_prefix(self, task_id: str) -> str:
        """What the keys of a job's previews at checkpoints start with."""
        return self.report(task_id, "previews/epoch_").key

    def log(self, task_id: str, name: str) -> Location:
        """The log of one run of the job."""
        return self._job(task_id, f"logs/{name}")

    def leased_task(self, at: Location) -> str | None:
        """The task whose lease a blob is; None where it is another blob."""
        task_id = _task_of(at)
        return task_id if task_id and at == self.lease(task_id) else None

    def recorded_task(self, at: Location) -> str | None:
        """The task whose journal a blob is; None where it is another blob."""
        task_id = _task_of(at)
        return task_id if task_id and at == self.journal(task_id) else None

    @property
    def _models(self) -> Bucket:
        return self.models or self.bucket

    def _job(self, task_id: str, name: str) -> Location:
        return self.bucket.at(f"{JOBS}{task_id}/{name}")


def _task_of(at: Location) -> str:
    return at.key.removeprefix(JOBS).rpartition("/")[0]
