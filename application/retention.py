"""Which checkpoints of a finished job are kept."""

from __future__ import annotations

import logging

from application.ports import BlobDenied, BlobStore, Unavailable
from application.storage_keys import StorageKeys
from domain.job import TrainingJob
from domain.location import Location

log = logging.getLogger(__name__)


def tidy(job: TrainingJob, blobs: BlobStore, keys: StorageKeys, keep: int | None) -> None:
    """Remove what ``Rules.keep_checkpoints`` does not want, and the styles beside it.

    The job is over: nothing here may undo it.
    """
    if keep is None:
        return
    try:
        for prefix, best in (
            (keys.checkpoints_prefix(job.task_id), _best_checkpoint(job, keys)),
            (keys.styles_prefix(job.task_id), _best_style(job, keys)),
        ):
            stored = blobs.list(keys.bucket, prefix)
            for at in stored[: max(0, len(stored) - keep)]:
                if not keep or at != best:
                    blobs.delete(at)
    except (Unavailable, BlobDenied) as error:
        log.warning("old checkpoints of task %s are left: %s", job.task_id, error)


def _best_checkpoint(job: TrainingJob, keys: StorageKeys) -> Location | None:
    """Where the checkpoint at the end of the best epoch lies, if that epoch had one."""
    metric = job.metric
    if metric is None or metric.best_epoch is None:
        return None
    step = metric.best_epoch * metric.steps // metric.epochs
    return keys.checkpoint(job.task_id, metric.best_epoch, step)


def _best_style(job: TrainingJob, keys: StorageKeys) -> Location | None:
    if job.metric is None or job.metric.best_epoch is None:
        return None
    return keys.style_at(job.task_id, job.metric.best_epoch)
