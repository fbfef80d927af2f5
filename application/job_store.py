"""The store of jobs: every blob that a worker keeps for a job, and its key."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from application.event_bus import EventSink
from application.fenced_blob import MAX_RECORD_BYTES, FencedBlob, RecordDamaged, read_json
from application.journal import JobRecord, decode_record
from application.lease import Lease, LeaseTerms, lease_owner
from application.ports import (
    REPORT_PAGE,
    BlobDenied,
    BlobMissing,
    BlobStore,
    BlobTooLarge,
    Clock,
    IfAbsent,
    PreconditionFailed,
    ReportFile,
    Unavailable,
)
from domain.errors import UserError
from domain.job import TrainingJob
from domain.location import Bucket, Location
from domain.results import Artifact, Checkpoint, CheckpointRef, Preview, PreviewScores
from domain.task import TrainingTask

log = logging.getLogger(__name__)

MAX_CHECKPOINT_BYTES = 4 * 1024**3
"""Exceeds a checkpoint of the highest rank on all layers, including the optimizer's state."""
MAX_PREVIEW_BYTES = 64 * 1024**2
"""Exceeds one PNG at the largest resolution."""
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
_PREVIEWS = "previews/epoch_"
"""Beginning of the names of previews at checkpoints, among the files of the report."""


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


class TaskDiffers(UserError):
    """A message has a known task id but a different request."""

    def __init__(self, task_id: str, differences: dict[str, tuple[Any, Any]]) -> None:
        fields = ", ".join(differences)
        remedy = "publish a different request under a new task_id"
        super().__init__(f"task {task_id} is already recorded with a different {fields}: {remedy}")
        self.details = {"field": fields, "remedy": remedy}
        for name, (recorded, given) in differences.items():
            self.details[f"{name} on record"] = _short(recorded)
            self.details[f"{name} in the message"] = _short(given)


@dataclass(frozen=True, kw_only=True)
class JobStore:
    """The records, leases and files of jobs, in one bucket.

    Every call may raise ``Unavailable`` and ``BlobDenied`` unless its docstring says otherwise.
    Calls that read JSON raise ``RecordDamaged`` if it cannot be decoded; those that read the job's
    record also raise ``RecordNewer``.
    """

    blobs: BlobStore
    keys: StorageKeys
    clock: Clock
    events: EventSink
    """Receives the events of jobs opened by ``open``, and of their leases."""
    worker: str
    """The worker's unique name in leases and records."""
    lease_terms: LeaseTerms = field(default_factory=LeaseTerms)

    # --- record and lease

    def open(self, fresh: TrainingJob) -> JobRecord:
        """Open the job's record for writing; if none exists, start from ``fresh``."""
        blob = FencedBlob(self.blobs, self.keys.job(fresh.task_id, JOURNAL))
        record = JobRecord(blob, self.worker, self.events, fresh, self.clock)
        record.load()
        return record

    def check_weights(self, job: TrainingJob) -> None:
        """Check the recorded location of the weights before the backend is notified of it.

        Raises:
            RecordDamaged: workers store no weights at that location.
        """
        if job.artifact is not None and not self.keys.is_weights(job.artifact.location):
            reason = ValueError(f"weights at {job.artifact.location}")
            raise RecordDamaged(self.keys.job(job.task_id, JOURNAL), reason)

    def record_request(self, task: TrainingTask, job: TrainingJob) -> None:
        """Record the request under its task id, or compare it with the recorded one.

        If two messages with one id arrive at the same time, the first write is the valid one.

        Raises:
            TaskDiffers: an earlier message with this id has a different request.
        """
        if job.style_id != task.style_id:  # version 0.1 recorded only the style id
            raise TaskDiffers(task.task_id, {"style_id": (job.style_id, task.style_id)})
        wanted = {
            "style_id": task.style_id,
            "images": [str(image) for image in task.images],
            "tags": list(task.tags),
            "parameters": json.loads(json.dumps(dict(task.requested.named))),  # lists for tuples
        }
        at = self.keys.job(task.task_id, TASK)
        try:
            self._put_json(at, wanted, IfAbsent())
        except PreconditionFailed:
            recorded = read_json(self.blobs, at, lambda found: {**found})
            differences = {
                name: (recorded.get(name), value)
                for name, value in wanted.items()
                if recorded is not None and recorded.get(name) != value
            }
            if differences:
                raise TaskDiffers(task.task_id, differences) from None

    def read_job(self, task_id: str) -> TrainingJob | None:
        """Read the job's record; None if it has none."""
        return read_json(self.blobs, self.keys.job(task_id, JOURNAL), decode_record)

    def recorded_tasks(self) -> Iterator[str]:
        """Iterate over the ids of all tasks with a record."""
        for at in self.blobs.list(self.keys.bucket, JOBS):
            if (task_id := self.keys.recorded_task(at)) is not None:
                yield task_id

    def delete_record(self, task_id: str) -> None:
        """Delete the job's record, so that the next run of the task starts over."""
        self.blobs.delete(self.keys.job(task_id, JOURNAL))

    def lease(self, task_id: str) -> Lease:
        """The job's lease, not yet acquired."""
        blob = FencedBlob(self.blobs, self.keys.job(task_id, LEASE))
        return Lease(blob, task_id, self.worker, self.lease_terms, self.clock, self.events)

    def lease_owner(self, task_id: str) -> str | None:
        """The worker that holds the job's lease; None if the lease is free or expired."""
        return lease_owner(self.blobs, self.keys.job(task_id, LEASE), self.clock.now())

    # --- rejection

    def put_rejection(self, task_id: str, rejection: Mapping[str, str]) -> None:
        """Store the reason why a message with this task id was rejected."""
        self._put_json(self.keys.job(task_id, REJECTION), dict(rejection))

    def rejection(self, task_id: str) -> dict[str, str] | None:
        """Read why a message with this task id was rejected; None if none was."""
        return self._texts(self.keys.job(task_id, REJECTION))

    # --- generated captions

    def captions(self, task_id: str) -> dict[str, str] | None:
        """The generated captions, by the images' hashes; None if none were made."""
        return self._texts(self.keys.job(task_id, CAPTIONS))

    def add_captions(self, task_id: str, made: Mapping[str, str]) -> dict[str, str]:
        """Store generated captions; return the stored ones: another worker's, if it was first."""
        with suppress(PreconditionFailed):
            self._put_json(self.keys.job(task_id, CAPTIONS), dict(made), IfAbsent())
        return self.captions(task_id) or {}

    # --- cancellation

    def request_cancellation(self, task_id: str) -> None:
        """Store a request to cancel the job, for its current or next worker."""
        note = {"requested_at": self.clock.now().isoformat()}
        self._put_json(self.keys.job(task_id, CANCELLATION), note)

    def cancellation_requested(self, task_id: str) -> bool:
        """Whether a cancellation was requested; False if the store cannot be read."""
        try:
            self.blobs.get(self.keys.job(task_id, CANCELLATION), max_bytes=MAX_RECORD_BYTES)
        except BlobMissing:
            return False
        except BlobTooLarge:
            return True  # the content does not matter
        except (Unavailable, BlobDenied) as error:
            log.warning("could not check for a cancellation request: %s", error)
            return False
        return True

    # --- checkpoints and their styles

    def put_checkpoint(self, task_id: str, checkpoint: Checkpoint) -> CheckpointRef:
        at = self.keys.checkpoint(task_id, checkpoint.epoch, checkpoint.step)
        self.blobs.put(at, checkpoint.data)
        return CheckpointRef(at, checkpoint.epoch, checkpoint.step)

    def get_checkpoint(self, at: Location) -> bytes:
        """Read a checkpoint's data. Also raises ``BlobMissing`` and ``BlobTooLarge``."""
        return self.blobs.get(at, max_bytes=MAX_CHECKPOINT_BYTES).data

    def put_epoch_style(self, task_id: str, epoch: int, style: bytes) -> None:
        """Store the weights of an epoch's checkpoint for other programs."""
        self.blobs.put(self.keys.epoch_style(task_id, epoch), style)

    def prune(self, job: TrainingJob, keep: int | None) -> None:
        """Delete the old checkpoints of a finished job, and their styles, as
        ``WorkerConfig.keep_checkpoints`` says. Raises nothing: what cannot be deleted is kept.
        """
        if keep is None:
            return
        keys, task_id, metric = self.keys, job.task_id, job.metric
        epoch = metric.best_epoch or 0 if metric else 0  # epoch 0 has no checkpoint
        step = epoch * metric.steps // metric.epochs if metric else 0
        best_files = keys.checkpoint(task_id, epoch, step), keys.epoch_style(task_id, epoch)
        try:
            files = self.blobs.list(keys.bucket, f"{JOBS}{task_id}/")
            for best in best_files:
                folder = best.key.removesuffix(best.name)
                stored = [at for at in files if at.key.startswith(folder)]
                for at in stored[: max(0, len(stored) - keep)]:
                    if not keep or at != best:
                        self.blobs.delete(at)
        except (Unavailable, BlobDenied) as error:
            log.warning("could not delete old checkpoints of task %s: %s", task_id, error)

    # --- results

    def put_weights(self, job: TrainingJob, weights: bytes, peft: Mapping[str, bytes]) -> Artifact:
        """Store a finished style as one file, or as a folder for PEFT that also holds this file.

        Args:
            peft: the folder's files by name; empty stores one file. The backend gets the location
                of the first; readers wait for the last.
        """
        single = self.keys.weights(job.style_id)
        place = partial(self.keys.weights_in_folder, job.style_id, job.task_id)
        if peft:
            self.blobs.put(place(single.name), weights)
        files = {place(name): data for name, data in peft.items()} or {single: weights}
        for at, data in files.items():
            self.blobs.put(at, data)
        at, data = next(iter(files.items()))
        return Artifact(at, hashlib.sha256(data).hexdigest(), len(data))

    def put_previews(
        self,
        task_id: str,
        epoch: int,
        previews: tuple[Preview, ...],
        scores: PreviewScores | None,
    ) -> None:
        """Store the previews of an epoch's checkpoint, and their scores."""
        for number, preview in enumerate(previews):
            at = self.keys.report(task_id, f"{_PREVIEWS}{epoch:05d}_{number}.png")
            self.blobs.put(at, preview.png, content_type="image/png")
        if scores is not None:
            at = self.keys.report(task_id, f"{_PREVIEWS}{epoch:05d}_scores.json")
            self._put_json(at, asdict(scores))

    def previews(self, task_id: str) -> tuple[tuple[int, tuple[bytes, ...]], ...]:
        """Read the checkpoint previews of all attempts of a job: epochs, each with its PNGs."""
        found: dict[int, list[bytes]] = {}
        for at in self.blobs.list(self.keys.bucket, self.keys.report(task_id, _PREVIEWS).key):
            if named := re.search(r"epoch_(\d+)_\d+\.png$", at.key):
                png = self.blobs.get(at, max_bytes=MAX_PREVIEW_BYTES).data
                found.setdefault(int(named[1]), []).append(png)
        return tuple((epoch, tuple(pngs)) for epoch, pngs in sorted(found.items()))

    def preview_scores(self, task_id: str, epochs: Iterable[int]) -> dict[int, PreviewScores]:
        """Read the scores of these epochs' previews; epochs without scores are left out."""
        found: dict[int, PreviewScores] = {}
        for epoch in epochs:
            at = self.keys.report(task_id, f"{_PREVIEWS}{epoch:05d}_scores.json")
            try:
                scores = read_json(self.blobs, at, lambda value: PreviewScores(**value))
            except RecordDamaged as error:
                log.warning("the preview scores cannot be used: %s", error)
            else:
                found |= {epoch: scores} if scores else {}
        return found

    def delete_previews(self, task_id: str) -> None:
        """Delete the checkpoint previews of a job that trains again. Raises nothing."""
        try:
            for at in self.blobs.list(self.keys.bucket, self.keys.report(task_id, _PREVIEWS).key):
                self.blobs.delete(at)
        except (Unavailable, BlobDenied) as error:
            log.warning("could not delete the first try's previews of task %s: %s", task_id, error)

    def lacks_report(self, job: TrainingJob) -> bool:
        """Whether the job's report is not stored, and its last checkpoint is, to write it from."""
        page, last = self.keys.report(job.task_id, REPORT_PAGE), job.checkpoint
        return last is not None and self._exists(last.location) and not self._exists(page)

    def put_report(self, task_id: str, file: ReportFile) -> None:
        at = self.keys.report(task_id, file.name)
        self.blobs.put(at, file.data, content_type=file.content_type)

    def put_log(self, task_id: str, name: str, lines: bytes) -> None:
        """Store the log of one run of a job, as JSON lines."""
        at = self.keys.job(task_id, f"logs/{name}")
        self.blobs.put(at, lines, content_type="application/x-ndjson")

    def probe(self, bucket: Bucket) -> Location:
        """A key unique to this worker, for testing a bucket."""
        return bucket.at(f"{JOBS}check/{self.worker}")

    def _exists(self, at: Location) -> bool:
        return at in self.blobs.list(self.keys.bucket, at.key)

    def _put_json(
        self, at: Location, value: Mapping[str, Any], condition: IfAbsent | None = None
    ) -> None:
        data = json.dumps(value, indent=1).encode()
        self.blobs.put(at, data, content_type="application/json", condition=condition)

    def _texts(self, at: Location) -> dict[str, str] | None:
        """Read a JSON object of texts; None if there is none."""
        return read_json(
            self.blobs, at, lambda found: {str(name): str(text) for name, text in found.items()}
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
