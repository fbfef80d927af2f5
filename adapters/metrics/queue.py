"""Metrics of the queue's depths."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from adapters.common.queue_ports import QueueDepths
from adapters.metrics.instruments import Metrics, suppress_errors

log = logging.getLogger(__name__)


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
