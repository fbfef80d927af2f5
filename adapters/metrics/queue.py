"""Metrics of the task queue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from adapters.metrics.instruments import Metrics, record_outcome, suppress_errors
from application.ports import (
    Delivery,
    DeliveryLost,
    Queue,
    QueueDepths,
    QueueUnavailable,
)

log = logging.getLogger(__name__)

_RESULTS: dict[type[Exception], str] = {DeliveryLost: "lost", QueueUnavailable: "unavailable"}


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

    def retry_later(self, delivery: Delivery, delay: float, reason: str) -> None:
        """Delay the message for a retry, and count it."""
        with self._settling("retried"):
            self._inner.retry_later(delivery, delay, reason)

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
        return record_outcome(_RESULTS, lambda result: settlements.labels(outcome, result).inc())


class DepthGauges:
    """Counts the waiting messages in ``poll``, in the background, so that an unavailable or slow
    broker never delays a scrape.

    Args:
        queue: counts the messages.
        monotonic: monotonic time in seconds.
    """

    def __init__(
        self, queue: QueueDepths, metrics: Metrics, monotonic: Callable[[], float]
    ) -> None:
        self._queue = queue
        self._metrics = metrics
        self._now = monotonic
        self._counted_at: float | None = None
        self.depths: Mapping[str, int] = {}
        """The last count; empty if counting failed."""
        self.trouble: str | None = "the queue depths have not been read yet"
        """Why counting failed, or None."""

    @property
    def age(self) -> float | None:
        """Seconds since the last successful count."""
        return None if self._counted_at is None else self._now() - self._counted_at

    def poll(self) -> None:
        """Count once. Never raises."""
        try:
            depths = self._queue.depths()
        except Exception as error:
            if self.trouble is None:
                log.warning("the queue depths cannot be read: %s", error)
            self.depths, self.trouble = {}, str(error) or type(error).__name__
        else:
            self.depths, self.trouble = dict(depths), None
            self._counted_at = self._now()
        suppress_errors(self._show)

    @contextmanager
    def polling(self, seconds: float) -> Iterator[None]:
        """While open, count now and every ``seconds``, in the background.

        Leaving does not wait for a running count: an unresponsive broker must not delay the
        worker's exit.
        """
        closed = threading.Event()

        def poll() -> None:
            while True:
                self.poll()
                if closed.wait(seconds):
                    return

        threading.Thread(target=poll, name="queue depths", daemon=True).start()
        try:
            yield
        finally:
            closed.set()

    def _show(self) -> None:
        self._metrics.queue_up.set(self.trouble is None)
        # An old count would look like a queue that does not move.
        self._metrics.queue_messages.clear()
        for name, count in self.depths.items():
            self._metrics.queue_messages.labels(name).set(count)
