"""A training task: the platform's request for one style from one set of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from domain.errors import UserError
from domain.label import UNNAMED, Label
from domain.location import Location
from domain.parameters import RequestedParameters


class ValueDescription(str):
    """A description of a field's invalid value, shown without quotes."""

    __repr__ = str.__str__


MISSING = ValueDescription("missing")


class InvalidTask(UserError, ValueError):
    """The message is not a valid task; has the field, the value found and the remedy.

    ``style_id`` and ``task_id`` are set if they could be read: the first for notifying the
    backend, the second for operators who look up the task.
    """

    style_id: int | None = None
    task_id: str | None = None

    def __init__(self, field_name: str, value: object, remedy: str) -> None:
        shown = repr(value)
        self.value = shown if len(shown) <= 120 else f"{shown[:117]}..."
        super().__init__(f"{field_name} is {self.value}: {remedy}")
        self.field = field_name
        self.remedy = remedy


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """One request, as validated values."""

    task_id: str
    """Identifies the request; messages with the same id are the same request."""
    style_id: int
    """The platform's positive number of the style."""
    images: tuple[Location, ...]
    """The images to train on, in the given order."""
    tags: tuple[str, ...] = ()
    """English keywords for the whole style."""
    requested: RequestedParameters = field(default_factory=RequestedParameters)
    """The parameters that the task sets."""
    created_at: datetime | None = None
    """Time of the request, if the platform sent it."""
    label: Label = UNNAMED
    """The style's name and credits."""
