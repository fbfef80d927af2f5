"""Metrics of the blob store."""

from __future__ import annotations

from contextlib import AbstractContextManager

from adapters.metrics.instruments import Metrics, record_outcome, suppress_errors
from application.ports import (
    Blob,
    BlobDenied,
    BlobMissing,
    BlobStore,
    BlobTooLarge,
    Clock,
    Condition,
    PreconditionFailed,
    Unavailable,
)
from application.storage_keys import JOBS, MODELS
from domain.location import Bucket, Location

_RESULTS: dict[type[Exception], str] = {
    BlobMissing: "missing",
    BlobDenied: "denied",
    BlobTooLarge: "too_large",
    PreconditionFailed: "superseded",
    Unavailable: "unavailable",
}


class MeteredBlobStore:
    """Port ``BlobStore`` around another one; counts calls, bytes, errors and durations."""

    def __init__(self, inner: BlobStore, metrics: Metrics, clock: Clock) -> None:
        self._inner = inner
        self._metrics = metrics
        self._clock = clock

    def get(self, at: Location, *, max_bytes: int | None = None) -> Blob:
        """Read, and count the bytes.

        A read of an artist's file counts as ``fetch``, because one wrong task can make it fail.
        A failing ``get``, of the worker's own files, affects every task.
        """
        with self._calling("get" if at.key.startswith((JOBS, MODELS)) else "fetch"):
            blob = self._inner.get(at, max_bytes=max_bytes)
        suppress_errors(lambda: self._metrics.read_bytes.inc(len(blob.data)))
        return blob

    def put(
        self,
        at: Location,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        condition: Condition | None = None,
    ) -> str:
        """Write, and count the bytes."""
        with self._calling("put"):
            etag = self._inner.put(at, data, content_type=content_type, condition=condition)
        suppress_errors(lambda: self._metrics.written_bytes.inc(len(data)))
        return etag

    def delete(self, at: Location) -> None:
        """Remove, and count it."""
        with self._calling("delete"):
            self._inner.delete(at)

    def list(self, bucket: Bucket, prefix: str) -> list[Location]:
        """List, and count it."""
        with self._calling("list"):
            return self._inner.list(bucket, prefix)

    def _calling(self, operation: str) -> AbstractContextManager[None]:
        began = self._clock.monotonic()
        return record_outcome(_RESULTS, lambda result: self._record(operation, result, began))

    def _record(self, operation: str, result: str, began: float) -> None:
        self._metrics.storage_calls.labels(operation, result).inc()
        self._metrics.storage_seconds.labels(operation).observe(self._clock.monotonic() - began)
