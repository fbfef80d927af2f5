"""What a task id stands for: the first message with it decides, later ones must say the same."""

from __future__ import annotations

import json
from typing import Any

from application.fenced_blob import MAX_RECORD_BYTES, RecordDamaged
from application.ports import BlobMissing, BlobStore, IfAbsent, PreconditionFailed
from domain.errors import UserError
from domain.location import Location
from domain.task import TrainingTask


class TaskDiffers(UserError):
    """A message repeats a task id and asks for something else."""

    def __init__(self, task_id: str, differences: dict[str, tuple[Any, Any]]) -> None:
        fields = ", ".join(differences)
        remedy = "publish another request under a task_id of its own"
        super().__init__(f"task {task_id} is known with another {fields}: {remedy}")
        self.details = {"field": fields, "remedy": remedy}
        for name, (recorded, given) in differences.items():
            self.details[f"{name} on record"] = _short(recorded)
            self.details[f"{name} in the message"] = _short(given)


def claim_task_id(task: TrainingTask, at: Location, blobs: BlobStore) -> None:
    """Record what the task asks for, or compare it with what is on record.

    Of two messages with one id that come at the same time, the one that writes first decides.

    Raises:
        TaskDiffers: the id stands for another request.
        RecordDamaged: the record cannot be read.
    """
    wanted = json.loads(json.dumps(_content(task)))
    recorded = _read(at, blobs)
    if recorded is None:
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


def is_claimed(at: Location, blobs: BlobStore) -> bool:
    """Whether a task id stands for a request already."""
    return _read(at, blobs) is not None


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
