"""Deliveries waiting for the working thread."""

from __future__ import annotations

import threading
from collections import deque

from application.ports import Delivery


class Inbox:
    """Deliveries of the current session in the order of their arrival."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._waiting: deque[Delivery] = deque()

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

    def take(self, timeout: float) -> Delivery | None:
        """The next delivery, or None after ``timeout`` seconds."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._waiting, timeout)
            return self._waiting.popleft() if self._waiting else None
