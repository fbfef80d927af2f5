"""What the platform asks for: one style from one set of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from domain.errors import UserError
from domain.label import UNNAMED, Label
from domain.location import Location
from domain.parameters import RequestedParameters, default_epochs


class Finding(str):
    """What was found in a field, in the words to show it by."""

    __repr__ = str.__str__


MISSING = Finding("missing")


class InvalidTask(UserError, ValueError):
    """A message that is not a task: names the field, the value found and the remedy.

    ``style_id`` and ``task_id`` are set when they could be read all the same: the first so that
    the backend can be told, the second so that an operator can look the task up.
    """

    def __init__(
        self,
        field_name: str,
        value: object,
        remedy: str,
        style_id: int | None = None,
        task_id: str | None = None,
    ) -> None:
        shown = repr(value)
        self.value = shown if len(shown) <= 120 else f"{shown[:117]}..."
        super().__init__(f"{field_name} is {self.value}: {remedy}")
        self.field = field_name
        self.remedy = remedy
        self.style_id = style_id
        self.task_id = task_id


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """One request, as validated values."""

    task_id: str
    """Identifies the request; a message that repeats it is the same request again."""
    style_id: int
    """The platform's number of the style, positive."""
    images: tuple[Location, ...]
    """The images to learn from, in the order given."""
    tags: tuple[str, ...] = ()
    """English keywords for the whole style."""
    requested: RequestedParameters = field(default_factory=RequestedParameters)
    """The parameters that the task names."""
    created_at: datetime | None = None
    """When the platform made the request, where it says."""
    label: Label = UNNAMED
    """The style's name and credits."""


def check_size(task: TrainingTask, *, max_steps: int, max_resolution: int) -> None:
    """Reject a task that would keep a worker for days.

    Args:
        max_steps: of epochs times images.
        max_resolution: pixels; only a resolution that the task names is compared.

    Raises:
        InvalidTask: names the product or the resolution, and the limit.
    """
    images = len(set(task.images))
    epochs = task.requested.named.get("epochs")
    epochs = default_epochs(images) if epochs is None else epochs
    if epochs * images > max_steps:
        raise InvalidTask(
            "data.parameters.epochs",
            Finding(f"{epochs}, which with {images} images makes {epochs * images} steps"),
            f"give epochs x images of at most {max_steps} (MAX_JOB_STEPS)",
            style_id=task.style_id,
            task_id=task.task_id,
        )
    resolution = task.requested.named.get("resolution")
    if resolution is not None and resolution > max_resolution:
        remedy = f"give at most {max_resolution} (MAX_RESOLUTION)"
        raise InvalidTask(
            "data.parameters.resolution", resolution, remedy, task.style_id, task.task_id
        )
