"""What the platform asks for: one style from one set of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from domain.errors import UserError
from domain.label import UNNAMED, Label
from domain.location import Location
from domain.parameters import RequestedParameters


class Finding(str):
    """What was found in a field, in the words to show it by."""

    __repr__ = str.__str__


MISSING = Finding("missing")


class InvalidTask(UserError, ValueError):
    """A message that is not a task: names the field, the value found and the remedy.

    ``style_id`` and ``task_id`` are set when they could be read all the same, so that the backend
    can be told, unless the task is known.
    """

    def __init__(
        self,
        field_name: str,
        value: object,
        remedy: str,
        style_id: int | None = None,
        *,
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
