"""The system clock."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from datetime import UTC, datetime

log = logging.getLogger(__name__)


class SystemClock:
    """Port ``Clock`` on the system clocks."""

    def now(self) -> datetime:
        """Wall-clock time, timezone-aware, in UTC. May jump."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Monotonic time in seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait; a negative time counts as 0."""
        time.sleep(max(0.0, seconds))

    @contextmanager
    def every(self, seconds: float, action: Callable[[], None]) -> Iterator[None]:
        """Call ``action`` every ``seconds`` on a separate thread while the context is open.

        ``action`` runs in a copy of the caller's context variables, such as the current job.

        A call that takes longer than ``seconds`` is followed by the next one immediately; missed
        calls are not made up for.
        """
        closed = threading.Event()

        def repeat() -> None:
            due = time.monotonic() + seconds
            while not closed.wait(max(0.0, due - time.monotonic())):
                try:
                    action()
                except Exception:
                    log.exception("a periodic call failed; the next one follows as scheduled")
                due = max(due + seconds, time.monotonic())

        thread = threading.Thread(
            target=copy_context().run, args=(repeat,), name=f"every {seconds:g} s", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            closed.set()
            thread.join()
