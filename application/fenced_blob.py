"""A blob that a worker may overwrite only if it has read the latest version."""

from __future__ import annotations

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

MAX_RECORD_BYTES = 4 * 1024 * 1024
"""Largest record that is read; written records are many times smaller."""
DECODE_ERRORS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
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


class FencedBlob:
    """Reads and writes one blob; each write requires that no other writer changed it meanwhile.

    If the response of a write is lost (a timeout, or a retry of the store's client after its first
    try was stored), the write is recognised by its content. So the content of every write must be
    unique among all writers and all earlier writes.
    """

    def __init__(self, blobs: BlobStore, at: Location) -> None:
        self._blobs = blobs
        self._etag: str | None = None
        self._in_doubt: list[bytes] = []
        self.at = at

    def read(self) -> bytes | None:
        """Return the blob's content, or None; later writes are conditional on this state.

        Raises:
            RecordDamaged: the blob is too large for a record.
        """
        try:
            found = self._blobs.get(self.at, max_bytes=MAX_RECORD_BYTES)
        except BlobTooLarge as error:
            raise RecordDamaged(self.at, error) from None
        except BlobMissing:
            self._etag = None
            return None
        self._etag = found.etag
        return found.data

    def write(self, data: bytes) -> None:
        """Replace the blob.

        Raises:
            Superseded: another writer changed or removed it.
            Unavailable: the write may or may not have been stored; the next write checks.
        """
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

    def _put(self, data: bytes) -> None:
        condition = IfAbsent() if self._etag is None else IfMatch(self._etag)
        self._etag = self._blobs.put(
            self.at, data, content_type="application/json", condition=condition
        )

    def _ours(self, data: bytes) -> bool:
        """True if the blob is ``data``; False if it is an earlier write of ours whose response was
        lost.

        Raises:
            PreconditionFailed: another writer wrote the blob.
        """
        seen = self._etag
        found = self.read()
        if found == data:
            return True
        if found is None or found not in self._in_doubt:
            self._etag = seen
            raise PreconditionFailed(str(self.at))
        return False
