"""The recorded request of a task id: later messages with the id must have the same request."""

from __future__ import annotations

import json
from typing import Any

from application.fenced_blob import MAX_RECORD_BYTES, RecordDamaged
from application.ports import BlobMissing, BlobStore, IfAbsent, PreconditionFailed
from domain.errors import UserError
from domain.location import Location
from domain.task import TrainingTask


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


def claim_task_id(task: TrainingTask, at: Location, blobs: BlobStore) -> None:
    """Record the task's request, or compare it with the recorded one.

    If two messages with one id arrive at the same time, the first write is the valid one.

    Raises:
        TaskDiffers: the recorded request differs.
        RecordDamaged: the record cannot be decoded.
    """
    wanted = json.loads(json.dumps(_content(task)))
    try:
        data = json.dumps(wanted, indent=1).encode()
        blobs.put(at, data, content_type="application/json", condition=IfAbsent())
        return
    except PreconditionFailed:
        recorded = _read(at, blobs)
    if recorded is not None and recorded != wanted:
        names = [name for name in wanted if recorded.get(name) != wanted[name]]
        raise TaskDiffers(
            task.task_id, {name: (recorded.get(name), wanted[name]) for name in names}
        )


def _content(task: TrainingTask) -> dict[str, Any]:
    return {
        "style_id": task.style_id,
        "images": [str(image) for image in task.images],
        "tags": list(task.tags),
        "parameters": dict(task.requested.named),
    }


def _read(at: Location, blobs: BlobStore) -> dict[str, Any] | None:
    try:
        found = json.loads(blobs.get(at, max_bytes=MAX_RECORD_BYTES).data)
    except BlobMissing:
        return None
    except ValueError as error:
        raise RecordDamaged(at, error) from None
    if not isinstance(found, dict):
        raise RecordDamaged(at, TypeError("not an object"))
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
