"""A job's durable record in the blob store: what makes resume and once-only possible.

Every write is conditional on the record being as this worker last saw it, so a worker that
was thought dead and comes back can change nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields
from enum import StrEnum
from typing import Any, TypeVar, get_args, get_type_hints

from application.event_bus import EventSink
from application.fenced_blob import (
    MAX_RECORD_BYTES,
    NOT_AS_EXPECTED,
    FencedBlob,
    RecordDamaged,
    Superseded,
)
from application.lease import LeaseLost
from application.ports import BlobMissing, BlobStore, BlobTooLarge
from domain.errors import UserError
from domain.failure import Failure, FailureCode
from domain.job import Change, JobState, TrainingJob
from domain.location import Location
from domain.parameters import InvalidParameter, TrainingParameters
from domain.progress import Progress
from domain.results import Artifact, CheckpointRef, TrainingMetric

Member = TypeVar("Member", bound=StrEnum)

_STORED_AS = {"failures": "setbacks"}
"""Fields whose name in the record is older than their name here: workers of both versions read
one another's records."""


class RecordNewer(UserError):
    """The record was written by a newer worker and contains something unknown."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the job record was written by a newer worker version ({what}): upgrade this worker"
        )


class Entry:
    """One job's record, open for writing by one worker."""

    def __init__(
        self, blob: FencedBlob, writer: str, sink: EventSink, job: TrainingJob, opened_at: float
    ) -> None:
        self._blob = blob
        self._writer = writer
        self._sink = sink
        self._revision = 0
        self.job = job
        """The job as it stands."""
        self.opened_at = opened_at
        """Monotonic time, in seconds."""
        self.quiet_from = -math.inf
        """Monotonic time, in seconds, before which a progress call of ours may still reach the
        backend. Not on record: whoever takes a lost worker's job over comes later than that."""

    def load(self) -> None:
        """Take over what is on record, if anything is.

        Raises:
            RecordNewer: it is not for us.
            RecordDamaged: it cannot be read.
        """
        found = self._blob.read()
        if found is not None:
            self._revision, self.job = _decode(found, self._blob.at)

    def apply(self, change: Change) -> None:
        """Record the job after a transition, then pass its event on.

        Raises:
            LeaseLost: another worker has written the record since.
            Unavailable: the store cannot be reached; the job here stays as it was.
        """
        job, event = change
        # A failed write may have happened: a revision is never used twice.
        self._revision += 1
        record = {"revision": self._revision, "writer": self._writer, "job": encode_job(job)}
        try:
            self._blob.write(json.dumps(record, indent=1).encode())
        except Superseded as error:
            raise LeaseLost(str(error)) from None
        self.job = job
        self._sink(event)

    def note(self, change: Change) -> None:
        """Like ``apply``, for what is not worth a write: a crash may forget it."""
        self.job, event = change
        self._sink(event)


def read_record(blobs: BlobStore, at: Location) -> TrainingJob | None:
    """The job on record at ``at``; None where there is no record.

    Raises:
        RecordNewer: it is not for us.
        RecordDamaged: it cannot be read.
    """
    try:
        found = blobs.get(at, max_bytes=MAX_RECORD_BYTES)
    except BlobMissing:
        return None
    except BlobTooLarge as error:
        raise RecordDamaged(at, error) from None
    return _decode(found.data, at)[1]


def _decode(data: bytes, at: Location) -> tuple[int, TrainingJob]:
    """A record's revision, and its job."""
    try:
        record = json.loads(data)
        revision = record["revision"]
        if type(revision) is not int:
            raise TypeError(f"revision is {revision!r}")
        return revision, decode_job(record["job"])
    except NOT_AS_EXPECTED as error:
        raise RecordDamaged(at, error) from error


def encode_job(job: TrainingJob) -> dict[str, Any]:
    """The job as JSON values."""
    return {_STORED_AS.get(name, name): value for name, value in asdict(job).items()}


def decode_job(values: dict[str, Any]) -> TrainingJob:
    """The job that ``encode_job`` wrote; without what only a newer worker knows, for while workers
    are being replaced one may take over from the other.

    Raises:
        RecordNewer: what this one does not know would change what is done.
    """

    def optional(name: str, build: Callable[[Any], Any]) -> Any:
        return None if values[name] is None else build(values[name])

    counts = ("attempt", "failures", "announcements")
    plain = {name: values[_STORED_AS.get(name, name)] for name in ("task_id", "style_id", *counts)}
    return TrainingJob(
        **_fields(TrainingJob, {"waits": values.get("waits", False), **plain}),
        state=_member(JobState, values["state"]),
        parameters=optional("parameters", _parameters),
        progress=optional("progress", lambda v: Progress(**_fields(Progress, v))),
        checkpoint=optional("checkpoint", lambda v: CheckpointRef(**_located(CheckpointRef, v))),
        metric=optional("metric", lambda v: TrainingMetric(**_fields(TrainingMetric, v))),
        artifact=optional("artifact", lambda v: Artifact(**_located(Artifact, v))),
        failure=optional("failure", _failure),
    )


def _located(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    location = Location(**_fields(Location, values["location"]))
    return _fields(kind, {**values, "location": location})


def _failure(values: dict[str, Any]) -> Failure:
    return Failure(**_fields(Failure, {**values, "code": _member(FailureCode, values["code"])}))


def _member(kind: type[Member], value: str) -> Member:
    if isinstance(value, str) and value not in set(kind):
        raise RecordNewer(f"{kind.__name__} {value}")
    return kind(value)


def _parameters(values: dict[str, Any]) -> TrainingParameters:
    known = {field.name for field in fields(TrainingParameters)}
    if unknown := sorted(values.keys() - known):
        # A style trained without one would not be what was asked for.
        raise RecordNewer(f"it has {', '.join(unknown)}")
    try:
        return TrainingParameters(**{**values, "sample_prompts": tuple(values["sample_prompts"])})
    except InvalidParameter as error:
        raise RecordNewer(f"it has {error}") from None


def _fields(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass among the values, each of its type."""
    hints = get_type_hints(kind)
    known = {field.name: values[field.name] for field in fields(kind) if field.name in values}
    for name, value in known.items():
        allowed = get_args(hints[name]) or (hints[name],)
        if isinstance(value, int) and not isinstance(value, bool) and float in allowed:
            continue
        if type(value) not in allowed:
            raise TypeError(f"{name} is {value!r}"[:200])
    return known
