"""The trainer on a GPU in SD 1.5's own shapes: `python -m benchmarks.gpu`, or `make bench-gpu`.

Random weights, 512 px, rank 8. Measures the plain recipe and each optimization added in turn, at
several batch sizes, with memory and the share of the matrix product speed of the same run; several
styles at once; and a whole job of 20 images and 200 epochs. A row that fails contains its error
and does not stop the others. The file is written after each row. If only some parts are measured,
the file keeps the rows of the others.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from adapters.diffusion.execution import choose_execution
from benchmarks.gpu.bench import attempts, prepare
from benchmarks.gpu.facts import facts, slug
from benchmarks.gpu.job import whole_job
from benchmarks.gpu.results import PARTS, kept_results, write_results
from benchmarks.gpu.speed import FALLBACK_FLOP, WAYS, count_flop, speed
from benchmarks.gpu.styles import several_styles
from benchmarks.measuring_cost import EPOCHS, measuring_cost


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description="Measure the trainer on a GPU.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small base, 64 px: only a rehearsal")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=5.0, help="measured per row")
    parser.add_argument("--ways", nargs="+", default=[*WAYS[:-1]], choices=WAYS)
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=PARTS)
    parser.add_argument("--styles", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--epochs", type=int, default=200, help="of the whole job")
    parser.add_argument("--rounds", type=int, default=3, help="of the cost's two runs")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/<device>.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    results: dict[str, Any] = facts(device)
    target = options.json or Path("benchmarks/results") / f"{slug(results['device'])}.json"
    measured: list[dict[str, Any]] = []
    results |= kept_results(target, results, options.parts)
    kept = results["rows"]

    def note(part: str, row: dict[str, Any]) -> None:
        measured.append({"part": part, **row})
        results["rows"] = sorted(kept + measured, key=lambda row: PARTS.index(row["part"]))
        print(json.dumps(row), flush=True)
        write_results(target, results)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if {"speed", "styles", "cost"} & {*options.parts}:
            bench = prepare(options, device, folder)
            if "speed" in options.parts:
                try:
                    flop = count_flop(bench)
                except Exception:  # rows with the usual count are better than none
                    traceback.print_exc()
                    flop = FALLBACK_FLOP
                results["tflop_per_image"] = round(flop / 1e12, 4)
                limit = results["matmul_tflops"]
                speed(options, bench, flop, limit, lambda row: note("speed", row))
            if "styles" in options.parts:
                several_styles(options, bench, lambda row: note("styles", row))
            if "cost" in options.parts:
                # A shorter run than the whole job's: it is repeated.
                plan = bench.plan(batch=1, epochs=min(options.epochs, EPOCHS))
                trainer = bench.trainer(choose_execution(device))

                def cost() -> dict[str, Any]:
                    return measuring_cost(trainer, plan, options.rounds, time.perf_counter)

                for row in attempts(cost, "measured losses and scores"):
                    note("cost", row)
                del trainer
            del bench
            gc.collect()
        if "job" in options.parts:
            whole_job(options, device, folder, lambda row: note("job", row))


if __name__ == "__main__":
    main()
