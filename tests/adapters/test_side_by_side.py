"""All observers of concurrent jobs: real runs of the use case in threads, step by step."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from adapters.logs.context import LogContext
from adapters.logs.events import log_event
from adapters.logs.formats import JsonFormatter
from adapters.logs.job_log import JobLog
from adapters.logs.redact import Redactor
from adapters.memory import ManualClock, MemoryBlobStore
from adapters.metrics.calls import MeteredBlobStore
from adapters.metrics.instruments import Metrics
from adapters.metrics.jobs import JobMetrics
from adapters.status_page.previews import PreviewCache
from adapters.status_page.state import WorkerState
from application.event_bus import EventBus
from application.settlement import Ack, Settlement
from application.stop_signal import StopSignal
from domain.events import Event
from domain.location import Location
from domain.task import TrainingTask
from tests.application.world import CONFIG, World, a_task, received, settled

STYLES = (1, 2, 3)
EPOCHS = 25
STEPS = 3 * EPOCHS


class Observers:
    """The observers of one worker, as ``entrypoints/bootstrap.py`` builds them."""

    def __init__(self) -> None:
        self.logs, clock = MemoryBlobStore(), ManualClock()
        self.metrics = Metrics("w", "1")
        self.jobs = JobMetrics(self.metrics, clock.monotonic)
        self.worker_state = WorkerState("w", "1", clock)
        self.preview_cache = PreviewCache()
        context = LogContext("w")
        self.job_log = JobLog(World().store(blobs=self.logs).put_log, clock, "w")
        self.job_log.setFormatter(JsonFormatter(Redactor()))
        self.job_log.addFilter(context)
        sinks = (self.jobs, self.worker_state, self.preview_cache, self.job_log)
        self.publish = EventBus(context, log_event, *sinks)
        self.max_active = 0
        self._together = threading.Barrier(len(STYLES), timeout=60)

    def __call__(self, event: Event) -> None:
        """Pass events on in lockstep: wait until every run has sent one."""
        self._together.wait()
        self.publish(event)
        self.max_active = max(self.max_active, len(self.worker_state.snapshot()["jobs"]))

    def run(self, task: TrainingTask) -> Settlement:
        """Run a task as a worker does, in its own thread."""
        world = World()
        blobs = MeteredBlobStore(world.blobs, self.metrics, world.clock)
        use_case = world.worker(
            blobs=blobs,
            events=self,
            config=replace(CONFIG, fetch_concurrency=4),
        )
        world.blobs.put(Location("media", "7/03.txt"), b"\xff\xfe no text, which is worth a line")
        self.publish(received(task))
        settlement = use_case(task, StopSignal())
        self.publish(settled(task, settlement))
        return settlement


@pytest.fixture
def observers() -> Iterator[Observers]:
    """The observers after three concurrent jobs."""
    found, root = Observers(), logging.getLogger()
    level, switching = root.level, sys.getswitchinterval()
    root.addHandler(found.job_log)
    root.setLevel(logging.DEBUG)
    sys.setswitchinterval(1e-5)
    tasks = [replace(a_task(), task_id=f"task-{n}", style_id=n) for n in STYLES]
    try:
        with ThreadPoolExecutor(len(tasks)) as slots:
            assert list(slots.map(found.run, tasks)) == [Ack()] * len(tasks)
        yield found
    finally:
        sys.setswitchinterval(switching)
        root.setLevel(level)
        root.removeHandler(found.job_log)


def test_concurrent_jobs_have_their_own_log_metrics_and_slot(observers: Observers) -> None:
    assert observers.max_active == len(STYLES)

    logs = {at.key.split("/")[1]: data.decode() for at, data in observers.logs.blobs.items()}
    assert logs.keys() == {f"task-{n}" for n in STYLES}
    for task_id, text in logs.items():
        lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
        assert {line["task_id"] for line in lines} == {task_id}
        messages = [line["message"] for line in lines]
        assert sum("caption 03.txt is left out" in message for message in messages) == 1
        assert sum("epoch 25/25" in message for message in messages) == 1
        assert all(f"task-{n}" not in text for n in STYLES if task_id != f"task-{n}")

    def value(name: str, **labels: str) -> float | None:
        return observers.metrics.registry.get_sample_value(f"style_trainer_{name}", labels)

    assert [value("steps_total", slot=slot) for slot in "012"] == [STEPS] * 3
    assert value("jobs_total", result="completed", code="none") == 3
    assert value("runs_total", settlement="done") == 3
    assert value("active_jobs") == 0
    assert [value("phase", slot=slot, phase="idle") for slot in "012"] == [1, None, None]

    snapshot = observers.worker_state.snapshot()
    assert (snapshot["job"], snapshot["jobs"]) == (None, [])
    assert {job["style_id"] for job in snapshot["recent"]} == set(STYLES)
    assert {job["result"] for job in snapshot["recent"]} == {"completed"}
    assert [epoch for epoch, _ in snapshot["last"]["curve"]] == list(range(1, EPOCHS + 1))
    assert (observers.preview_cache.shown() or {})["epoch"] == EPOCHS
