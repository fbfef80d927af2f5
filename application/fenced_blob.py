"""JSON records in the store, and writes that need the latest version of a record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from application.ports import (
    BlobMissing,
    BlobStore,
    BlobTooLarge,
    IfAbsent,
    IfMatch,
    PreconditionFailed,
    Unavailable,
)
from domain.errors import UserError
from domain.location import Location

T = TypeVar("T")

MAX_RECORD_BYTES = 4 * 1024 * 1024
"""Largest record that is read; written records are many times smaller."""
DECODE_ERRORS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    OverflowError,
)
"""Exceptions raised by decoding JSON of an unexpected structure."""


class RecordDamaged(UserError):
    """A record of a job cannot be decoded."""

    def __init__(self, at: Location, reason: Exception) -> None:
        super().__init__(
            f"{at} is damaged ({type(reason).__name__}: {reason}): restore an earlier version "
            f"of it, or, if the backend was not notified of the outcome, delete it; the job "
            f"then starts over"
        )


class Superseded(Exception):
    """Another worker wrote the blob after it was read; this write was not stored."""


def read_json(blobs: BlobStore, at: Location, decode: Callable[[Any], T]) -> T | None:
    """Read and decode a JSON record; None if there is none.

    Raises:
        RecordDamaged: it is too large, not JSON, or ``decode`` raised one of ``DECODE_ERRORS``.
    """
    data, _ = _fetch(blobs, at)
    return None if data is None else _decoded(data, at, decode)


class FencedBlob:
    """One JSON record; each write requires that no other writer changed it meanwhile.

    If the response of a write is lost (a timeout, or a retry of the store's client after its first
    try was stored), the write is recognised by its content. So each write gets a new
    ``revision``, and a record must contain something that is unique to its writer.
    """

    def __init__(self, blobs: BlobStore, at: Location) -> None:
        self._blobs = blobs
        self._revision = 0
        self._in_doubt: list[bytes] = []
        self.at = at
        self.etag: str | None = None
        """ETag of the version that the next write replaces; None if there is none."""

    def read(self, decode: Callable[[Any], T]) -> T | None:
        """Like ``read_json``; later writes are conditional on this state.

        Raises:
            RecordDamaged: as ``read_json``, or the revision is missing.
        """

        def decode_with_revision(record: Any) -> T:
            if type(record["revision"]) is not int:
                raise TypeError(f"revision is {record['revision']!r}")
            self._revision = record["revision"]
            return decode(record)

        data, self.etag = _fetch(self._blobs, self.at)
        return None if data is None else _decoded(data, self.at, decode_with_revision)

    def write(self, record: Mapping[str, Any]) -> None:
        """Replace the record.

        Raises:
            Superseded: another writer changed or removed it.
            Unavailable: the write may or may not have been stored; the next write checks.
        """
        # A failed write may have been stored: never reuse a revision.
        self._revision += 1
        data = json.dumps({"revision": self._revision, **record}, indent=1).encode()
        try:
            try:
                self._put(data)
            except PreconditionFailed:
                if not self._ours(data):
                    self._put(data)
        except PreconditionFailed:
            raise Superseded(f"{self.at} was written by another worker") from None
        except Unavailable:
            self._in_doubt.append(data)
            raise
        self._in_doubt.clear()

    def delete(self) -> None:
        """Delete the blob, whoever wrote it."""
        self._blobs.delete(self.at)

    def _put(self, data: bytes) -> None:
        condition = IfAbsent() if self.etag is None else IfMatch(self.etag)
        self.etag = self._blobs.put(
            self.at, data, content_type="application/json", condition=condition
        )

    def _ours(self, data: bytes) -> bool:
        """True if the blob is ``data``; False if it is an earlier write of ours whose response was
        lost. Raises ``PreconditionFailed`` if another writer wrote it.
        """
        found, etag = _fetch(self._blobs, self.at)
        if found != data and found not in self._in_doubt:
            raise PreconditionFailed(str(self.at))
        self.etag = etag
        return found == data


def _fetch(blobs: BlobStore, at: Location) -> tuple[bytes | None, str | None]:
    """The blob's content and ETag; None for both if there is no blob."""
    try:
        found = blobs.get(at, max_bytes=MAX_RECORD_BYTES)
        return found.data, found.etag
    except BlobMissing:
        return None, None
    except BlobTooLarge as error:
        raise RecordDamaged(at, error) from None


def _decoded(data: bytes, at: Location, decode: Callable[[Any], T]) -> T:
    try:
        return decode(json.loads(data))
    except DECODE_ERRORS as error:
        raise RecordDamaged(at, error) from error
