"""A job's durable record in the blob store, for resuming and for notifying the backend once.

Every write is conditional on the version that this worker last read, so a worker that was
believed dead cannot overwrite the record of its successor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from enum import StrEnum
from types import NoneType
from typing import Any, get_args, get_type_hints

from application.event_bus import EventSink
from application.fenced_blob import FencedBlob, Superseded
from application.lease import LeaseLost
from application.ports import Clock
from domain.errors import UserError
from domain.events import PartTimed
from domain.job import Change, TrainingJob
from domain.limits import InvalidParameter
from domain.parameters import TrainingParameters

_STORED_AS = {"failures": "setbacks", "notifications": "announcements"}
"""Fields that keep their old names in the record, so that old and new workers can read each
other's records."""

_FLAGS = ("waits", "second_try")
"""Fields that records of earlier versions lack; False there."""


class RecordNewer(UserError):
    """The record was written by a newer worker version and contains something unknown."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the job record was written by a newer worker version ({what}): upgrade this worker"
        )


class JobRecord:
    """One job's record, open for writing by one worker, and the times of the job's parts."""

    def __init__(
        self, blob: FencedBlob, writer: str, events: EventSink, job: TrainingJob, clock: Clock
    ) -> None:
        self._blob = blob
        self._writer = writer
        self._events = events
        self._clock = clock
        self.job = job
        """The current state of the job."""
        self.opened_at = clock.monotonic()
        """Monotonic time, in seconds."""
        self.seconds: dict[str, float] = {}
        """Seconds by part (``PartTimed``), since the last ``publish_times``."""
        self.style_gone_calls = 0
        """Number of consecutive progress calls with a 404 response."""

    def load(self) -> None:
        """Load the job from the record, if it exists.

        Raises:
            RecordNewer, RecordDamaged: the record cannot be used.
        """
        self.job = self._blob.read(decode_record) or self.job

    def apply(self, change: Change) -> None:
        """Write the job to its record after a transition, then publish the event.

        Raises:
            LeaseLost: another worker has written the record meanwhile.
            Unavailable: the store cannot be reached; ``job`` is unchanged.
        """
        job, event = change
        try:
            self._blob.write({"writer": self._writer, "job": encode_job(job)})
        except Superseded as error:
            raise LeaseLost(str(error)) from None
        self.job = job
        self._events(event)

    def apply_unsaved(self, change: Change) -> None:
        """Like ``apply``, without writing the record: a crash may lose the change."""
        self.job, event = change
        self._events(event)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the duration of the with-block to a part of the job."""
        began = self._clock.monotonic()
        try:
            yield
        finally:
            self.add_time(part, self._clock.monotonic() - began)

    def add_time(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def publish_times(self) -> None:
        """Send an event for each part, and start from 0."""
        seconds, self.seconds = self.seconds, {}
        for part, spent in seconds.items():
            self._events(PartTimed(**self.job.ids, part=part, seconds=spent))


def encode_job(job: TrainingJob) -> dict[str, Any]:
    """The job as JSON values."""
    return {_STORED_AS.get(name, name): value for name, value in asdict(job).items()}


def decode_record(record: dict[str, Any]) -> TrainingJob:
    """The job of a record, for ``read_json``. Raises as ``decode_job``."""
    return decode_job(record["job"])


def decode_job(values: dict[str, Any]) -> TrainingJob:
    """Decode the result of ``encode_job``. Unknown fields of newer workers are dropped if they are
    harmless, because old and new workers run side by side during a rollout.

    Raises:
        RecordNewer: an unknown field would change the result.
        ValueError, KeyError, TypeError, AttributeError: the values are not a job's.
    """
    values = {**dict.fromkeys(_FLAGS, False), **values}
    names = [field.name for field in fields(TrainingJob)]
    job: TrainingJob = _decode_as(
        TrainingJob, {name: values[_STORED_AS.get(name, name)] for name in names}
    )
    return job


def _decode_as(kind: Any, value: Any) -> Any:
    """Decode a JSON value as an enum, a JSON type or a dataclass, or as one of these or None."""
    if NoneType in get_args(kind):
        if value is None:
            return None
        (kind,) = set(get_args(kind)) - {NoneType}
    if kind is TrainingParameters:
        return _parameters(value)
    if issubclass(kind, StrEnum):
        if isinstance(value, str) and value not in set(kind):
            raise RecordNewer(f"{kind.__name__} {value}")
        return kind(value)
    if kind in {str, int, float, bool}:
        if type(value) is kind or (kind is float and type(value) is int):
            return value
        raise TypeError(f"{value!r} is not of type {kind.__name__}"[:200])
    types = get_type_hints(kind)
    known = {name: item for name, item in value.items() if name in types}
    return kind(**{name: _decode_as(types[name], item) for name, item in known.items()})


def _parameters(values: dict[str, Any]) -> TrainingParameters:
    known = {field.name for field in fields(TrainingParameters)}
    if unknown := sorted(values.keys() - known):
        # Dropping a parameter would train a different style.
        raise RecordNewer(f"it has {', '.join(unknown)}")
    try:
        return TrainingParameters(**{**values, "sample_prompts": tuple(values["sample_prompts"])})
    except InvalidParameter as error:
        raise RecordNewer(f"it has {error}") from None
