"""Speed of several jobs at batch 1 in one pass, compared with one job alone."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from adapters.diffusion.cuda_graphs import CudaRecorder
from adapters.diffusion.execution import ExecutionOptions, choose_execution
from benchmarks.gpu.bench import Bench, attempts, pace
from benchmarks.gpu.facts import reset_peak_memory
from benchmarks.together import running_together


def several_styles(
    options: argparse.Namespace, bench: Bench, note: Callable[[dict[str, Any]], None]
) -> None:
    """Measure several jobs at batch 1 in one pass, and one job alone."""
    fastest = choose_execution(bench.device)
    best = replace(fastest, dtype=bench.base.unet.dtype, make_recorder=CudaRecorder)
    alone = None
    for styles in options.styles:
        for row in attempts(
            lambda styles=styles: measure_styles(bench, best, styles), "styles at once"
        ):
            if "images_per_s" in row:
                alone = alone or row["images_per_s"] / styles
                row["times_one_at_a_time"] = round(row["images_per_s"] / alone, 2)
            note({"styles": styles, **row})


def measure_styles(bench: Bench, execution: ExecutionOptions, styles: int) -> dict[str, Any]:
    """Measure ``styles`` jobs together, each in its own thread; a step is one of every job."""
    reset_peak_memory(bench.device)
    trainer = bench.trainer(execution, slots=max(2, styles))
    with running_together(trainer, [bench.plan(1, seed=seed) for seed in range(styles)]) as runs:
        # The first epoch warms up and records; each epoch's end waits for the device.
        enough = time.perf_counter() + bench.seconds
        while not runs.over.is_set() and (
            time.perf_counter() < enough or min(map(len, runs.epochs)) < 3
        ):
            time.sleep(0.01)
        model = trainer.model
        together = model.runs_per_pass if model else 1
        recordings = model.graphs.size if model else None
        measured = [list(ends) for ends in runs.epochs]
    epochs = sum((len(ends) - 1) / (ends[-1] - ends[0]) for ends in measured)
    per_step = styles / (epochs * len(bench.images))
    return {
        **pace(bench, styles, per_step),
        "in_one_pass": together,
        "recordings": recordings or 0,
        "still_recorded": recordings is not None,
    }
