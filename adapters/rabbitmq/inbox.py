"""Deliveries waiting for the threads that receive, and how many of these threads there are."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from application.ports import Clock, Delivery

PAUSE_SECONDS = 5.0
"""Seconds for which a thread counts as receiving after its ``take`` has ended without a delivery:
longer than an idle worker's pause between two receives, so that its consumer stays."""


class Inbox:
    """Deliveries of the current session in the order of their arrival."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._arrived = threading.Condition()
        self._waiting: deque[Delivery] = deque()
        self._receiving: dict[int, float] = {}
        """Threads that receive, each with the time until which it counts."""

    def __len__(self) -> int:
        with self._arrived:
            return len(self._waiting)

    def put(self, delivery: Delivery) -> None:
        """Add one."""
        with self._arrived:
            self._waiting.append(delivery)
            self._arrived.notify()

    def clear(self) -> None:
        """Drop all; the broker delivers them again."""
        with self._arrived:
            self._waiting.clear()

    def take(self, timeout: float, on_wait: Callable[[], None]) -> Delivery | None:
        """The next delivery, or None after ``timeout`` seconds.

        Args:
            on_wait: called once this thread counts as receiving.
        """
        thread = threading.get_ident()
        with self._arrived:
            self._receiving[thread] = self._clock.monotonic() + timeout + PAUSE_SECONDS
        on_wait()
        with self._arrived:
            self._arrived.wait_for(lambda: self._waiting, timeout)
            if not self._waiting:
                return None
            # No longer counted if the process was suspended meanwhile.
            self._receiving.pop(thread, None)
            return self._waiting.popleft()

    def missing(self) -> int:
        """Number of threads that receive and have no delivery waiting for them."""
        with self._arrived:
            return max(0, len(self._served()) - len(self._waiting))

    def remove_surplus(self) -> list[Delivery]:
        """Remove and return the newest deliveries, for which no thread receives."""
        with self._arrived:
            surplus = max(0, len(self._waiting) - len(self._served()))
            return [self._waiting.pop() for _ in range(surplus)]

    def _served(self) -> dict[int, float]:
        now = self._clock.monotonic()
        self._receiving = {at: until for at, until in self._receiving.items() if until > now}
        return self._receiving
