"""A worker whose trainer takes no time: `python -m benchmarks.service.worker JOBS`.

Queue, journal, lease, store and webhooks are the worker's own. The trainer, the check of the
images and the report are stand-ins. Waits for a line on standard input, ends after JOBS jobs, and
prints the time of each job's end and the number of calls to the store as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

from dependency_injector import providers

from adapters.memory import ManualClock, MemoryInspector, MemoryReporter, MemoryTrainer
from application.settlement import Ack, Settlement
from application.stop_signal import StopReason, StopSignal
from benchmarks.service.counting_store import CountingBlobStore
from domain.task import TrainingTask
from entrypoints.bootstrap import open_container
from entrypoints.settings import WorkerSettings, load_settings
from entrypoints.stores import open_blobs


def main(jobs: int) -> None:
    """Process ``jobs`` jobs."""
    settings, stop = load_settings(kind=WorkerSettings), StopSignal()
    ends: list[float] = []
    with open_container(settings, stop=stop) as container:
        store = CountingBlobStore(open_blobs(settings, container.clock()))
        container.plain_blobs.override(providers.Object(store))
        container.trainer.override(providers.Object(MemoryTrainer(ManualClock(), 0.0)))
        container.inspector.override(providers.Object(MemoryInspector()))
        container.reporter.override(providers.Object(MemoryReporter()))
        loop = container.worker_loop()

        def run(task: TrainingTask, stop: StopSignal, retries: int) -> Settlement:
            settlement = loop.run(task, stop, retries)
            if not isinstance(settlement, Ack):
                raise SystemExit(f"task {task.task_id}: {settlement}")
            ends.append(time.monotonic())
            if len(ends) == jobs:
                stop.request(StopReason.SHUTDOWN)
            return settlement

        print("ready", flush=True)
        sys.stdin.readline()
        replace(loop, run=run)(stop)
    print(json.dumps({"ends": ends, "calls": store.calls}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
