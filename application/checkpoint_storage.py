"""Store checkpoints in the background while training continues."""

from __future__ import annotations

import logging
import math
from concurrent.futures import Executor, Future, wait
from contextvars import copy_context

from application.job_store import JobStore
from application.journal import JobRecord
from application.lease import LeaseLost
from application.ports import BlobDenied, TrainingSession, Unavailable
from domain.results import CheckpointRef

log = logging.getLogger(__name__)


class CheckpointStorage:
    """Uploads one run's checkpoints, one at a time, then writes each to the job's record.

    Uploads run on the executor; the record is written in the calling thread. While the store is
    unavailable, training continues and checkpoints are skipped. ``begin`` and ``finish`` raise
    ``LeaseLost`` if another worker has the job, and ``BlobDenied`` if the upload was denied.
    """

    def __init__(self, store: JobStore, record: JobRecord, executor: Executor) -> None:
        self._store = store
        self._clock = store.clock
        self._record = record
        self._executor = executor
        self._pending: tuple[int, Future[CheckpointRef]] | None = None
        """The epoch of the checkpoint that is being uploaded, and its location once it is."""
        self.seconds = 0.0
        """Duration of the last checkpoint: taking it and uploading it."""

    def begin(self, session: TrainingSession, *, with_style: bool) -> None:
        """Wait for the previous upload, then take a checkpoint and start its upload.

        Args:
            with_style: also store the current weights, so that users can choose an earlier epoch.
        """
        self.finish()
        began = self._clock.monotonic()
        taken = session.checkpoint()
        task_id = self._record.job.task_id
        style = session.weights() if with_style else None

        def store() -> CheckpointRef:
            try:
                checkpoint = self._store.put_checkpoint(task_id, taken)
            finally:
                self.seconds = self._clock.monotonic() - began
            try:
                if style is not None:
                    self._store.put_epoch_style(task_id, taken.epoch, style)
            except (Unavailable, BlobDenied) as error:
                log.warning("could not store the checkpoint's LoRA file: %s", error)
            return checkpoint

        context = copy_context()  # log lines of the upload carry the job's id
        self._pending = taken.epoch, self._executor.submit(context.run, store)

    def finish(self, timeout: float = math.inf, *, at_the_end: bool = False) -> bool:
        """Wait for the pending upload, and record its checkpoint.

        Args:
            timeout: seconds.
            at_the_end: do not write the record now; the end of the training, which follows, does.

        Returns:
            False if the upload has not ended within ``timeout``.
        """
        if self._pending is None:
            return True
        epoch, upload = self._pending
        if not wait([upload], timeout if math.isfinite(timeout) else None).done:
            return False
        self._pending = None
        try:
            checkpoint = upload.result()
            apply = self._record.apply_unsaved if at_the_end else self._record.apply
            apply(self._record.job.save_checkpoint(checkpoint))
        except Unavailable as error:
            log.warning("could not store the checkpoint of epoch %d: %s", epoch, error)
        return True

    def try_to_finish(self, timeout: float = math.inf) -> None:
        """Like ``finish``, while another error is handled: exceptions are logged, so that they do
        not replace that error.
        """
        try:
            self.finish(timeout)
        except LeaseLost as error:
            log.debug("the pending checkpoint is not recorded: %s", error)
        except Exception:
            log.warning("the pending checkpoint is lost", exc_info=True)
