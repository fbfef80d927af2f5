"""Ports around other ports, which record metrics of the calls: store, queue, backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from prometheus_client import Counter, Histogram

from adapters.metrics.instruments import Metrics, record_outcome, suppress_errors
from application.job_store import JOBS, MODELS
from application.ports import (
    Blob,
    BlobDenied,
    BlobMissing,
    BlobStore,
    BlobTooLarge,
    Clock,
    Condition,
    Delivery,
    DeliveryLost,
    Notifier,
    NotifierRejected,
    PreconditionFailed,
    Queue,
    QueueUnavailable,
    StyleGone,
    Unavailable,
)
from domain.failure import Failure
from domain.location import Bucket, Location
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric

_STORE_RESULTS: dict[type[Exception], str] = {
    BlobMissing: "missing",
    BlobDenied: "denied",
    BlobTooLarge: "too_large",
    PreconditionFailed: "superseded",
    Unavailable: "unavailable",
}
_QUEUE_RESULTS: dict[type[Exception], str] = {
    DeliveryLost: "lost",
    QueueUnavailable: "unavailable",
}
_BACKEND_RESULTS: dict[type[Exception], str] = {
    Unavailable: "unavailable",
    StyleGone: "gone",
    NotifierRejected: "refused",
}


@contextmanager
def _timed(
    call: str,
    results: Mapping[type[Exception], str],
    calls: Counter,
    seconds: Histogram,
    monotonic: Callable[[], float],
) -> Iterator[None]:
    """Count the call of the with-block by its result, and time it."""
    began = monotonic()

    def record(result: str) -> None:
        calls.labels(call, result).inc()
        seconds.labels(call).observe(monotonic() - began)

    with record_outcome(results, record):
        yield


class MeteredBlobStore:
    """Port ``BlobStore`` around another one; counts calls, bytes, errors and durations."""

    def __init__(self, inner: BlobStore, metrics: Metrics, clock: Clock) -> None:
        self._inner = inner
        self._metrics = metrics
        self._now = clock.monotonic

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
        calls, seconds = self._metrics.storage_calls, self._metrics.storage_seconds
        return _timed(operation, _STORE_RESULTS, calls, seconds, self._now)


class MeteredQueue:
    """Port ``Queue`` around another one; counts deliveries and how they were settled."""

    def __init__(self, inner: Queue, metrics: Metrics) -> None:
        self._inner = inner
        self._metrics = metrics

    def publish(self, body: bytes) -> None:
        """Publish."""
        self._inner.publish(body)

    def receive(self, timeout: float) -> Delivery | None:
        """Receive, and count the deliveries."""
        try:
            delivery = self._inner.receive(timeout)
        except QueueUnavailable:
            suppress_errors(self._metrics.queue_errors.inc)
            raise
        if delivery is not None:
            suppress_errors(self._metrics.deliveries.inc)
            if delivery.redelivered:
                suppress_errors(self._metrics.redeliveries.inc)
        return delivery

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge, and count it."""
        with self._settling("acknowledged"):
            self._inner.acknowledge(delivery)

    def retry_later(
        self, delivery: Delivery, delay: float, reason: str, *, counts: bool = True
    ) -> None:
        """Delay the message for a retry, and count it."""
        with self._settling("retried"):
            self._inner.retry_later(delivery, delay, reason, counts=counts)

    def dead_letter(
        self, delivery: Delivery, reason: str, details: Mapping[str, str] | None = None
    ) -> None:
        """Dead-letter, and count it."""
        with self._settling("dead_lettered"):
            self._inner.dead_letter(delivery, reason, details)

    def requeue(self, delivery: Delivery) -> None:
        """Requeue, and count it."""
        with self._settling("requeued"):
            self._inner.requeue(delivery)

    def _settling(self, outcome: str) -> AbstractContextManager[None]:
        settlements = self._metrics.settlements
        return record_outcome(
            _QUEUE_RESULTS, lambda result: settlements.labels(outcome, result).inc()
        )


class MeteredNotifier:
    """Port ``Notifier`` around another one; counts calls by result and times them.

    Args:
        monotonic: monotonic time in seconds.
    """

    def __init__(self, inner: Notifier, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self._inner = inner
        self._metrics = metrics
        self._now = monotonic

    def progress(self, style_id: int, progress: Progress) -> None:
        """Send the progress, and count the call."""
        with self._calling("progress"):
            self._inner.progress(style_id, progress)

    def completed(
        self, task_id: str, style_id: int, artifact: Artifact, metric: TrainingMetric
    ) -> None:
        """Report that the style is ready, and count the call."""
        with self._calling("completed"):
            self._inner.completed(task_id, style_id, artifact, metric)

    def failed(self, task_id: str, style_id: int, failure: Failure) -> None:
        """Report that the job has failed, and count the call."""
        with self._calling("failed"):
            self._inner.failed(task_id, style_id, failure)

    def has_arrived(self, task_id: str, style_id: int, outcome: Artifact | Failure) -> bool | None:
        """Query the style; not counted, because it is not a call of the contract."""
        return self._inner.has_arrived(task_id, style_id, outcome)

    def _calling(self, call: str) -> AbstractContextManager[None]:
        calls, seconds = self._metrics.webhooks, self._metrics.webhook_seconds
        return _timed(call, _BACKEND_RESULTS, calls, seconds, self._now)
