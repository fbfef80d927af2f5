"""Checkpoints on their way to the store, while the training goes on."""

from __future__ import annotations

import logging
from concurrent.futures import Executor, Future, wait
from contextvars import copy_context
from dataclasses import dataclass

from application.journal import Entry
from application.lease import LeaseLost
from application.ports import BlobDenied, BlobStore, Clock, TrainingSession, Unavailable
from application.storage_keys import StorageKeys
from domain.location import Location
from domain.results import CheckpointRef

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Underway:
    checkpoint: CheckpointRef
    began: float
    """Seconds, by the clock that never goes back."""
    stored: Future[float]
    """When it arrived, by the same clock."""


class CheckpointStorage:
    """Stores one run's checkpoints, one at a time, and puts each on record once it is stored.

    The upload has a thread of its own; the journal is written by whoever calls. Where the store
    is away, training is worth more than a pause: that checkpoint is left out.

    Args:
        executor: where uploads are made.
    """

    def __init__(
        self, blobs: BlobStore, clock: Clock, keys: StorageKeys, entry: Entry, executor: Executor
    ) -> None:
        self._blobs = blobs
        self._clock = clock
        self._keys = keys
        self._entry = entry
        self._executor = executor
        self._underway: _Underway | None = None
        self.seconds = 0.0
        """That the last one took: to be taken, sent and put on record."""

    def begin(self, session: TrainingSession, *, with_style: bool) -> None:
        """Take a checkpoint and send it off, once the one before has arrived.

        Args:
            with_style: send the style as it is now too, for who likes an earlier epoch better.

        Raises:
            LeaseLost: another worker has the job.
            BlobDenied: the store refused the one before.
        """
        self.finish()
        began = self._clock.monotonic()
        taken = session.checkpoint()
        task_id = self._entry.job.task_id
        at = self._keys.checkpoint(task_id, taken.epoch, taken.step)
        style_at = self._keys.style_at(task_id, taken.epoch)
        style = session.weights() if with_style else None

        def store() -> float:
            self._blobs.put(at, taken.data)
            arrived = self._clock.monotonic()
            if style is not None:
                self._store_style(style_at, style)
            return arrived

        context = copy_context()  # whose job it is, for the log
        stored = self._executor.submit(context.run, store)
        self._underway = _Underway(CheckpointRef(at, taken.epoch, taken.step), began, stored)

    def look(self) -> None:
        """Put the checkpoint under way on record, if it has arrived.

        Raises:
            LeaseLost, BlobDenied: as ``begin``.
        """
        if self._underway is not None and self._underway.stored.done():
            self.finish()

    def finish(self, timeout: float | None = None) -> bool:
        """Wait for the checkpoint under way, and put it on record.

        Args:
            timeout: seconds; None for as long as the store takes.

        Returns:
            False when it has not arrived by then.

        Raises:
            LeaseLost, BlobDenied: as ``begin``.
        """
        if self._underway is None:
            return True
        if not wait([self._underway.stored], timeout).done:
            return False
        underway, self._underway = self._underway, None
        checkpoint = underway.checkpoint
        try:
            sent = underway.stored.result() - underway.began
            began = self._clock.monotonic()
            self._entry.apply(self._entry.job.save_checkpoint(checkpoint))
            self.seconds = sent + self._clock.monotonic() - began
        except Unavailable as error:
            self.seconds = self._clock.monotonic() - underway.began
            log.warning("no checkpoint at epoch %d: %s", checkpoint.epoch, error)
        return True

    def _store_style(self, at: Location, style: bytes) -> None:
        try:
            self._blobs.put(at, style)
        except (Unavailable, BlobDenied) as error:
            log.warning("the checkpoint's style is not stored: %s", error)

    def leave(self, timeout: float | None = None) -> None:
        """After the training broke off: put on record what arrives in time. What goes wrong here
        is logged; it must not hide why the training broke off.

        Args:
            timeout: as ``finish``.
        """
        try:
            self.finish(timeout)
        except LeaseLost as error:
            log.debug("the checkpoint under way is not put on record: %s", error)
        except Exception:
            log.warning("the checkpoint under way is lost", exc_info=True)
