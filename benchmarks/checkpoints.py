"""Cost of checkpoints with a slow store: `python -m benchmarks.checkpoints`.

Runs the same job alternately with blocking and with background uploads of its checkpoints, on the
small base and a folder with delayed writes. Prints seconds and their ratio.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from adapters.clock import SystemClock
from adapters.diffusion.base.model import load_base
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.filesystem import FileBlobStore
from adapters.images.decode import decode
from adapters.memory import InlineExecutor, MemoryNotifier
from application.event_bus import WorkerEvent
from application.job_store import JobStore, StorageKeys
from application.stop_signal import StopSignal
from application.training_loop import TrainingLoop
from application.worker_config import WorkerConfig
from benchmarks.images import drawn_images
from domain.events import CheckpointSaved
from domain.job import TrainingJob
from domain.location import Bucket, Location
from domain.parameters import TrainingParameters
from domain.training_plan import TrainingPlan
from entrypoints.models import SMALL_BASE


class Late(FileBlobStore):
    """A folder whose writes are delayed by ``seconds``."""

    seconds = 0.0

    def put(self, at: Location, data: bytes, **how: Any) -> str:
        """Store ``data`` after the delay."""
        time.sleep(self.seconds)
        return super().put(at, data, **how)


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description="Measure what storing checkpoints costs a job.")
    parser.add_argument("--latency", type=float, default=0.3, help="of the store, in seconds")
    parser.add_argument("--every", type=int, default=10, help="epochs between checkpoints")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    import torch

    torch.set_num_threads(1)  # as the local command does with the small base
    trainer = DiffusionTrainer(load_base(str(SMALL_BASE)), decode, "cpu")
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as uploads:
        folder = Path(scratch)
        plan = TrainingPlan(
            style_id=1,
            images=drawn_images(folder / "images", 4, size=320),
            tags=(),
            parameters=TrainingParameters(epochs=options.epochs, resolution=128),
        )
        run = partial(seconds_of, trainer, plan, options)
        rounds = [
            (run(folder / f"{n}-waiting", InlineExecutor()), run(folder / f"{n}-going", uploads))
            for n in range(options.rounds)
        ]
    waiting, going = zip(*rounds, strict=True)
    results = {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "checkpoints": checkpoints(options),
        "a write to the store, s": options.latency,
        "stored while the job waits, s (median)": round(statistics.median(waiting), 2),
        "stored while it goes on, s (median)": round(statistics.median(going), 2),
        "ratio (median)": round(statistics.median(a / b for a, b in rounds), 2),
    }
    print(json.dumps(results, indent=1))


def seconds_of(
    trainer: DiffusionTrainer,
    plan: TrainingPlan,
    options: argparse.Namespace,
    folder: Path,
    uploads: Executor,
) -> float:
    """Seconds from the job's first step to the journal record of its last checkpoint."""
    blobs = Late({"models": folder})
    blobs.seconds = options.latency
    saved: list[WorkerEvent] = []
    job = TrainingJob(task_id="measured", style_id=1)
    config, clock = WorkerConfig(checkpoint_every=options.every, preview_share=0.0), SystemClock()
    store = JobStore(
        blobs=blobs,
        keys=StorageKeys(Bucket("models")),
        clock=clock,
        events=saved.append,
        worker="worker",
    )
    record = store.open(job)
    record.apply_unsaved(record.job.start())
    record.apply_unsaved(record.job.begin_training(plan.parameters, len(plan.images)))
    loop = TrainingLoop(store=store, notifier=MemoryNotifier(), config=config, uploads=uploads)
    with trainer.open(plan, None) as session:
        started = time.perf_counter()
        loop.run(session, record, store.lease(job.task_id), StopSignal())
        seconds = time.perf_counter() - started
    stored = sum(isinstance(event, CheckpointSaved) for event in saved)
    assert stored == checkpoints(options)
    return seconds


def checkpoints(options: argparse.Namespace) -> int:
    """Number of checkpoints of a job; the last epoch always has one."""
    return -(-int(options.epochs) // int(options.every))


if __name__ == "__main__":
    main()
