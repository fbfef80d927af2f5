"""Retries of a call while a dependency is unavailable."""

from __future__ import annotations

import pytest

from adapters.memory import ManualClock
from application.ports import BlobUnavailable
from application.retry import retry
from application.stop_signal import StopReason, StopSignal


class Away:
    """A call that never succeeds, and records its attempts."""

    def __init__(self, clock: ManualClock) -> None:
        self.tried: list[float] = []
        self._clock = clock

    def __call__(self) -> None:
        self.tried.append(self._clock.monotonic())
        if len(self.tried) > 100:
            raise AssertionError("it is tried for ever")
        raise BlobUnavailable("503")


def test_delays_double_up_to_a_minute_and_no_attempt_is_after_the_timeout() -> None:
    clock = ManualClock()
    away = Away(clock)
    with pytest.raises(BlobUnavailable):
        retry(away, clock, StopSignal(), timeout=195.0)
    assert away.tried == [0.0, 5.0, 15.0, 35.0, 75.0, 135.0, 195.0]


def test_a_pause_lasts_as_long_as_the_service_asks_up_to_a_minute() -> None:
    clock = ManualClock()
    tried: list[float] = []

    def busy() -> None:
        tried.append(clock.monotonic())
        if len(tried) < 3:
            raise BlobUnavailable("503", retry_after=[30.0, 3600.0][len(tried) - 1])

    retry(busy, clock, StopSignal())
    assert tried == [0.0, 30.0, 90.0]


def test_a_stop_ends_the_delay_and_the_next_attempt_is_the_last() -> None:
    clock, stop = ManualClock(), StopSignal()
    away = Away(clock)
    with (
        clock.every(7.0, lambda: stop.request(StopReason.SHUTDOWN)),
        pytest.raises(BlobUnavailable),
    ):
        retry(away, clock, stop, timeout=600.0)
    assert away.tried == [0.0, 5.0, 7.0]
