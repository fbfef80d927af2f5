"""Retry while a dependency is temporarily unavailable."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from application.ports import Clock, Unavailable
from application.stop_signal import StopSignal

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE = 5.0
MAX_PAUSE = 600.0
RETRY_SECONDS = 600.0
"""Seconds for which calls are retried by default."""
MAX_RETRY_PAUSE = 60.0
"""Longest pause of ``retry`` in seconds."""
POLL_SECONDS = 1.0
"""Seconds between checks of ``stop`` while sleeping."""


def backoff(
    retries: int,
    retry_after: float | None = None,
    *,
    first: float = FIRST_PAUSE,
    max_pause: float = MAX_PAUSE,
    random: Callable[[], float] = lambda: 1.0,
) -> float:
    """Seconds to wait before the next try: exponential backoff with jitter.

    Args:
        retries: number of earlier pauses.
        retry_after: lower limit in seconds, from ``Retry-After``.
        first: the first pause in seconds; each further one is twice as long, up to ``max_pause``.
        random: a number from 0 to 1; 0 halves the pause, 1 leaves it.
    """
    pause = min(max_pause, first * 2.0 ** min(retries, 16)) * (0.5 + 0.5 * random())
    return max(pause, retry_after or 0.0)


def retry(
    call: Callable[[], T],
    clock: Clock,
    stop: StopSignal,
    timeout: float = RETRY_SECONDS,
    errors: tuple[type[Exception], ...] = (Unavailable,),
) -> T:
    """Retry ``call`` while it raises one of ``errors``, for ``timeout`` seconds or until ``stop``;
    then raise the last one.
    """
    deadline = clock.monotonic() + timeout
    retries = 0
    while True:
        try:
            return call()
        except errors as error:
            # Not longer, even with ``Retry-After``: a finished training waits for the call.
            asked = error.retry_after if isinstance(error, Unavailable) else None
            pause = min(backoff(retries, asked), MAX_RETRY_PAUSE)
            if stop.reason is not None or clock.monotonic() + pause > deadline:
                raise
            log.warning("retrying in %.0f s: %s", pause, error)
            sleep(pause, clock, stop)
            retries += 1


def sleep(seconds: float, clock: Clock, stop: StopSignal) -> None:
    """Sleep for ``seconds`` or until ``stop`` is requested."""
    end = clock.monotonic() + seconds
    while stop.reason is None and (left := end - clock.monotonic()) > 0:
        clock.sleep(min(left, POLL_SECONDS))
