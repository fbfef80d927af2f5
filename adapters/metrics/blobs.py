"""The store, measured; and the lease, which is a blob in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapters.metrics.instruments import Metrics, quietly
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
from domain.location import Location

_RESULTS: dict[type[Exception], str] = {
    BlobMissing: "missing",
    BlobDenied: "denied",
    BlobTooLarge: "too_large",
    PreconditionFailed: "superseded",
}


class MeteredBlobStore:
    """Port ``BlobStore`` around another one; counts calls, bytes, errors and durations.

    Args:
        is_lease: whether a blob is a job's lease, whose writes are counted apart.
    """

    def __init__(
        self,
        inner: BlobStore,
        metrics: Metrics,
        clock: Clock,
        is_lease: Callable[[Location], bool],
    ) -> None:
        self._inner = inner
        self._metrics = metrics
        self._clock = clock
        self._is_lease = is_lease

    def get(self, at: Location, *, max_bytes: int | None = None) -> Blob:
        """Read, and count the bytes."""
        with self._calling("get"):
            blob = self._inner.get(at, max_bytes=max_bytes)
        quietly(lambda: self._metrics.read_bytes.inc(len(blob.data)))
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
        with self._calling("put", at):
            etag = self._inner.put(at, data, content_type=content_type, condition=condition)
        quietly(lambda: self._metrics.written_bytes.inc(len(data)))
        return etag

    def delete(self, at: Location) -> None:
        """Remove, and count it."""
        with self._calling("delete"):
            self._inner.delete(at)

    def list(self, bucket: str, prefix: str) -> list[Location]:
        """List, and count it."""
        with self._calling("list"):
            return self._inner.list(bucket, prefix)

    @contextmanager
    def _calling(self, operation: str, written: Location | None = None) -> Iterator[None]:
        began, result = self._clock.monotonic(), "ok"
        try:
            yield
        except BaseException as error:
            away = isinstance(error, Unavailable)
            result = "unavailable" if away else _RESULTS.get(type(error), "error")  # type: ignore[arg-type]
            raise
        finally:
            quietly(lambda: self._record(operation, result, began, written))

    def _record(self, operation: str, result: str, began: float, written: Location | None) -> None:
        metrics = self._metrics
        metrics.storage_calls.labels(operation, result).inc()
        metrics.storage_seconds.labels(operation).observe(self._clock.monotonic() - began)
        if written is not None and self._is_lease(written):
            metrics.lease_writes.labels(result).inc()
            if result == "ok":
                metrics.lease_written.set(self._clock.now().timestamp())
