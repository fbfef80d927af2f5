from __future__ import annotations

import pytest

from application.event_bus import EventBus, WorkerEvent
from application.settlement import Ack
from domain.events import JobInterrupted
from tests.application.world import a_task, received, settled

EVENTS: list[WorkerEvent] = [
    received(a_task()),
    JobInterrupted(task_id="a", style_id=1, reason="why", failures=0),
    settled(a_task(), Ack()),
]


def failing(event: WorkerEvent) -> None:
    raise RuntimeError("broken observer")


def test_a_failing_observer_affects_neither_the_others_nor_the_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first: list[WorkerEvent] = []
    last: list[WorkerEvent] = []
    bus = EventBus(first.append, failing, last.append)
    for event in EVENTS:
        bus(event)
    assert first == last == EVENTS
    assert [record.exc_info is not None for record in caplog.records] == [True] * 3
