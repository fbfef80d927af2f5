from __future__ import annotations

import pytest

from application.event_bus import EventBus, Watchers
from application.settlement import Ack, Settlement
from domain.events import Event, JobInterrupted
from domain.task import TrainingTask
from tests.application.world import a_task

EVENT = JobInterrupted(task_id="a", style_id=1, reason="why", failures=0)


class Recorder:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def __call__(self, event: Event) -> None:
        self.heard.append(event)

    def taken_up(self, task: TrainingTask) -> None:
        self.heard.append(task)

    def put_down(self, task: TrainingTask | None, settlement: Settlement) -> None:
        self.heard.append((task, settlement))


class Deaf(Recorder):
    def __call__(self, event: Event) -> None:
        raise RuntimeError("deaf")

    def taken_up(self, task: TrainingTask) -> None:
        raise RuntimeError("blind")

    def put_down(self, task: TrainingTask | None, settlement: Settlement) -> None:
        raise RuntimeError("numb")


def test_a_listener_that_fails_disturbs_neither_the_others_nor_the_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, last = Recorder(), Recorder()
    EventBus(first, Deaf(), last)(EVENT)
    watchers = Watchers(first, Deaf(), last)
    watchers.taken_up(a_task())
    watchers.put_down(a_task(), Ack())
    assert first.heard == last.heard == [EVENT, a_task(), (a_task(), Ack())]
    assert [record.exc_info is not None for record in caplog.records] == [True] * 3
