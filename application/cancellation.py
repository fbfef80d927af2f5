"""A request to stop a job lies where its journal does, so that any worker finds it."""

from __future__ import annotations

import json
import logging
from datetime import datetime

from application.fenced_blob import MAX_RECORD_BYTES
from application.ports import BlobDenied, BlobMissing, BlobStore, BlobTooLarge, Unavailable
from application.storage_keys import StorageKeys

log = logging.getLogger(__name__)


def request_cancellation(task_id: str, blobs: BlobStore, keys: StorageKeys, now: datetime) -> None:
    """Ask whoever has the task, or will have it, to stop.

    Raises:
        BlobUnavailable, BlobDenied: the request is not on record.
    """
    note = json.dumps({"requested_at": now.isoformat()}).encode()
    blobs.put(keys.cancellation(task_id), note, content_type="application/json")


def cancellation_requested(task_id: str, blobs: BlobStore, keys: StorageKeys) -> bool:
    """Whether somebody has asked for the job to be stopped; no, where that cannot be told."""
    try:
        blobs.get(keys.cancellation(task_id), max_bytes=MAX_RECORD_BYTES)
    except BlobMissing:
        return False
    except BlobTooLarge:
        return True  # whatever lies there
    except (Unavailable, BlobDenied) as error:
        log.warning("could not look for a request to cancel: %s", error)
        return False
    return True
