"""A whole job, from files to weights, in a separate process: `python -m benchmarks.gpu.job`.

The measurement starts with the process, so that it includes the imports, the driver's start and
the loading of the base model, as in a local run for one style.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil
import torch

from adapters.diffusion.lean_imports import lean
from adapters.images.decode import decode
from adapters.images.folder import find_images
from benchmarks import SMALL_BASE
from benchmarks.gpu.facts import gib, wait_for
from benchmarks.images import drawn_images, read_images
from domain.loss_curve import EpochRecord
from domain.parameters import TrainingParameters
from domain.training_plan import TrainingPlan

if TYPE_CHECKING:
    from adapters.diffusion.trainer import DiffusionTrainer

ROWS = ("whole job", "checkpoint and previews", "next job")


def whole_job(
    options: argparse.Namespace,
    device: torch.device,
    folder: Path,
    note: Callable[[dict[str, Any]], None],
) -> None:
    """Measure a job of 20 images and what follows it, on one base model. Each row is noted as
    soon as it is measured."""
    from benchmarks.gpu.bench import attempts  # not in the job's own process

    rows = _rows_of_process(options, device, folder)
    for name in ROWS:
        for row in attempts(partial(next, rows), name):
            note(row)
            if "error" in row:
                return


def _rows_of_process(
    options: argparse.Namespace, device: torch.device, folder: Path
) -> Iterator[dict[str, Any]]:
    """The rows that the job's process prints. Its errors and warnings go to this one's output.

    Raises:
        RuntimeError: the process failed.
    """
    base, images = SMALL_BASE, folder / "job"
    if not options.tiny:
        from benchmarks.full_size import full_size_base, save_base

        base = folder / "base"
        save_base(full_size_base(device, torch.float16), base)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # leaves the GPU's memory to the job
    drawn_images(images, 20)
    command = [sys.executable, "-m", "benchmarks.gpu.job", str(base), str(images)]
    command += ["--device", str(device), "--epochs", str(options.epochs)]
    command += ["--resolution", "64"] if options.tiny else []
    command += ["--preview-steps", "2"] if options.tiny else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from (json.loads(line) for line in process.stdout if line.startswith("{"))
    raise RuntimeError(f"the job's process ended with exit status {process.returncode}")


def main() -> None:
    """Run the jobs and print the rows."""
    parser = argparse.ArgumentParser(description="Time a whole job.")
    parser.add_argument("base", type=Path, help="a diffusers folder")
    parser.add_argument("images", type=Path, help="a folder of images and captions")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--preview-steps", type=int)
    options = parser.parse_args()
    gc.disable()  # the imports, as a local run does them
    lean(partial(import_module, "adapters.diffusion.trainer"))
    gc.enable()
    from adapters.diffusion.base.model import load_base
    from adapters.diffusion.preview import STEPS
    from adapters.diffusion.trainer import DiffusionTrainer

    imported = _age()
    device = torch.device(options.device)
    base = lean(lambda: load_base(str(options.base)))
    preview_steps = options.preview_steps or STEPS
    trainer = DiffusionTrainer(base, decode, device, preview_steps=preview_steps)
    wait_for(device)
    loaded = _age()
    folder: Path = options.images
    images = read_images(folder / name for name in find_images(folder))
    parameters = TrainingParameters(epochs=options.epochs, resolution=options.resolution)
    plan = TrainingPlan(style_id=1, images=images, tags=(), parameters=parameters)
    facts = {
        "images": len(images),
        "epochs": options.epochs,
        "imports_s": round(imported, 2),
        "load_base_s": round(loaded - imported, 2),
    }
    for row in _first(trainer, plan, device, loaded):
        print(json.dumps(facts | row), flush=True)
        facts = {}
    print(json.dumps(_second(trainer, plan, device)), flush=True)


def _first(
    trainer: DiffusionTrainer, plan: TrainingPlan, device: torch.device, loaded: float
) -> Iterator[dict[str, Any]]:
    """The job's row, then the row of a checkpoint and previews."""
    with trainer.open(plan, None) as session:
        wait_for(device)
        opened = _age()
        ends = [opened]
        while not session.finished:
            if session.advance().epoch_finished:
                ends.append(_age())
        weights = session.weights()
        ended = _age()
        yield {
            "encode_s": round(opened - loaded, 2),
            "train_s": round(ended - opened, 2),
            **_epochs(session.history, ends),
            "total_s": round(ended, 2),
            "steps": session.total_steps,
            "steps_per_s": round(session.total_steps / (ended - opened), 2),
            "peak_gib": gib(session.peak_memory),
            "weights_bytes": len(weights),
            "last_loss": session.history[-1].loss,
        }
        yield {
            "checkpoint_s": _timed(session.checkpoint, device),
            # The second round is timed: the first one chooses algorithms.
            "previews": len(session.previews(with_lora=True)),
            "previews_s": _timed(lambda: session.previews(with_lora=True), device),
        }


def _epochs(history: Sequence[EpochRecord], ends: Sequence[float]) -> dict[str, float]:
    """Seconds of the first epoch, which chooses algorithms and records graphs, and median seconds
    of the epochs without and with a measurement of the loss."""
    took: dict[bool, list[float]] = {True: [], False: []}
    for (before, after), record in zip(pairwise(ends), history, strict=True):
        took[record.evaluation_loss is not None].append(after - before)
    return {
        "first_epoch_s": round(ends[1] - ends[0], 2),
        "epoch_s": round(median(took[False] or took[True]), 3),
        "measured_epoch_s": round(median(took[True]), 3),
    }


def _second(trainer: DiffusionTrainer, plan: TrainingPlan, device: torch.device) -> dict[str, Any]:
    """Seconds of a second job, for which the base model is loaded and the kernels are compiled."""
    started = time.perf_counter()
    with trainer.open(plan, None) as session:
        wait_for(device)
        return {
            "second_job_open_s": round(time.perf_counter() - started, 3),
            "second_job_first_step_s": _timed(session.advance, device),
        }


def _timed(do: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    do()
    wait_for(device)
    return round(time.perf_counter() - started, 3)


def _age() -> float:
    """Seconds since this process started."""
    return time.time() - psutil.Process().create_time()


if __name__ == "__main__":
    main()
