"""Previews beside the checkpoints: how the style comes about, for little of its time."""

from __future__ import annotations

import logging
import re

from application.ports import (
    BlobDenied,
    BlobStore,
    Clock,
    TrainerBroken,
    TrainingSession,
    Unavailable,
)
from application.storage_keys import StorageKeys
from application.worker_config import WorkerConfig

log = logging.getLogger(__name__)

MAX_PREVIEW_BYTES = 64 * 1024**2
"""Of one image: more than PNG takes for the largest resolution."""


class CheckpointPreviews:
    """Draws and stores previews of one run, as long as they cost no more than the config allow.

    They are a courtesy: what fails here is logged, and is not the training's undoing. A session
    that cannot draw is not asked again; a store that is away may be there the next time.
    """

    def __init__(
        self, blobs: BlobStore, clock: Clock, keys: StorageKeys, config: WorkerConfig
    ) -> None:
        self._blobs = blobs
        self._clock = clock
        self._keys = keys
        self._share = config.preview_share
        self._left = config.max_previews if config.preview_share else 0
        self._began = clock.monotonic()
        self._spent, self._rounds = 0.0, 0

    def draw(self, session: TrainingSession, task_id: str, epoch: int) -> None:
        """Draw and store the previews of a checkpoint.

        Raises:
            TrainerBroken: by the session.
        """
        started = self._clock.monotonic()
        try:
            drawn = session.previews(adapted=True)
        except TrainerBroken:
            raise
        except Exception:
            log.warning("no previews at epoch %d, and none from here on", epoch, exc_info=True)
            self._left = 0
            return
        try:
            for number, preview in enumerate(drawn):
                at = self._keys.previews(task_id, epoch, number)
                self._blobs.put(at, preview.png, content_type="image/png")
        except (Unavailable, BlobDenied) as error:
            log.warning("the previews of epoch %d are not stored: %s", epoch, error)
        self._spent += self._clock.monotonic() - started
        self._rounds += 1
        self._left -= 1

    def affordable(self) -> bool:
        """Whether another round keeps to the config. The first is drawn in any case."""
        if not self._left or not self._rounds:
            return bool(self._left)
        trained = self._clock.monotonic() - self._began - self._spent
        return self._spent + self._spent / self._rounds <= self._share * trained


def stored_previews(
    blobs: BlobStore, keys: StorageKeys, task_id: str
) -> tuple[tuple[int, tuple[bytes, ...]], ...]:
    """All previews that a job's attempts have stored, by epoch."""
    found: dict[int, list[bytes]] = {}
    for at in blobs.list(keys.bucket, keys.previews_prefix(task_id)):
        if named := re.search(r"epoch_(\d+)_\d+\.png$", at.key):
            found.setdefault(int(named[1]), []).append(
                blobs.get(at, max_bytes=MAX_PREVIEW_BYTES).data
            )
    return tuple((epoch, tuple(pngs)) for epoch, pngs in sorted(found.items()))
