"""The trainer on a GPU in SD 1.5's own shapes: `python -m benchmarks.gpu`, or `make bench-gpu`.

Random weights, 512 px, rank 8: the common recipe, then each trick added in turn, at several batch
sizes; the share of what the card's matrix products reach in the same run; memory; and a whole
job of 20 pictures and 200 epochs. Every row stands for itself: one that fails says so, and the
file is written after each. Parts can be measured by themselves: the file keeps the others' rows.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from adapters.diffusion.base_model import BaseModel, load_base
from adapters.diffusion.strategy import Strategy, choose_strategy
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.pillow import decode
from application.ports import TrainingPlan
from benchmarks.full_size import RESOLUTION, SMALL_BASE, full_size_base, save_base
from benchmarks.pictures import drawn_pictures
from benchmarks.plain_recipe import plain_steps
from benchmarks.together import running_together
from domain.parameters import TrainingParameters
from domain.picture import Picture

WARM_UP = 8
"""Steps before the clock runs: kernels are chosen, and each shape recorded."""
RANK = 8
PARTS = ("speed", "styles", "job")
FALLBACK_FLOP = 1.72e12
"""Of one step with one picture at 512 px, where this run could not count it."""
_RECOMPUTED = 1 / 5
"""Of attention's backward pass: one of its five products is the forward pass's once more."""


@dataclass(frozen=True)
class Trick:
    """One way to run a step; each of the list has what the one before has, and more."""

    name: str
    strategy: Strategy
    compiled: bool = False


def tricks(compute: torch.dtype, *, with_compile: bool) -> list[Trick]:
    """From the plain way to the best, one thing at a time."""
    eager = Strategy(compute=compute)
    flat = replace(eager, flat_path=True)
    captured = replace(flat, capture=True)
    last = replace(captured, channels_last=True)
    fused = replace(last, fused=True)
    found = [
        Trick("encoded once, resident, nothing read back", eager),
        Trick("+ one copy of the adapters", flat),
        Trick("+ captured", captured),
        Trick("+ channels last", last),
        Trick("+ fused passes", fused),
    ]
    return found + [Trick("channels last, captured, compiled", last, compiled=True)] * with_compile


class Rerun:
    """Stands in for graphs where the device has none, so that every line runs there too."""

    warming_up = contextlib.nullcontext

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """The function itself."""
        return function


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    device: torch.device
    base: BaseModel
    pictures: tuple[Picture, ...]
    """Squares."""
    resolution: int
    seconds: float
    """How long each row is measured."""

    def trainer(self, trick: Trick, seats: int = 1) -> DiffusionTrainer:
        recorder = None if self.device.type == "cuda" else Rerun
        return DiffusionTrainer(
            self.base, decode, self.device, strategy=trick.strategy, recorder=recorder, seats=seats
        )

    def plan(self, batch: int, epochs: int = 10_000, seed: int = 0) -> TrainingPlan:
        parameters = TrainingParameters(
            epochs=epochs,
            resolution=self.resolution,
            rank=RANK,
            batch_size=batch,
            seed=seed,
            validation_epochs=0,
        )
        return TrainingPlan(style_id=1, pictures=self.pictures, tags=(), parameters=parameters)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure the trainer on a GPU.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small base, 64 px: only a rehearsal")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=5.0, help="measured per row")
    parser.add_argument("--compile", action="store_true", help="torch.compile too; takes minutes")
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=PARTS)
    parser.add_argument("--styles", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--epochs", type=int, default=200, help="of the whole job")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/<device>.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    started_up = time.time() - psutil.Process().create_time()
    results: dict[str, Any] = {**facts(device), "rows": []}
    target = options.json or Path("benchmarks/results") / f"{_slug(results['device'])}.json"
    measured: list[dict[str, Any]] = []
    kept = kept_rows(target, results, options.parts)
    if kept and "speed" not in options.parts:
        # The rows that are kept are shares of what was reached then.
        results["matmul_tflops"] = json.loads(target.read_text("utf-8"))["matmul_tflops"]

    def note(part: str, row: dict[str, Any]) -> None:
        measured.append({"part": part, **row})
        results["rows"] = sorted(kept + measured, key=lambda row: PARTS.index(row["part"]))
        print(json.dumps(row), flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(results, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if {"speed", "styles"} & {*options.parts}:
            bench = prepare(options, device, folder)
            flop = FALLBACK_FLOP
            with contextlib.suppress(Exception):
                flop = count_flop(bench)
            results["tflop_per_picture"] = round(flop / 1e12, 4)
            if "speed" in options.parts:
                limit = results["matmul_tflops"]
                speed(options, bench, flop, limit, lambda row: note("speed", row))
            if "styles" in options.parts:
                several_styles(options, bench, lambda row: note("styles", row))
            del bench
            gc.collect()
        if "job" in options.parts:
            for row in attempts(
                lambda: whole_job(options, device, folder, started_up), "whole job"
            ):
                note("job", row)


def kept_rows(target: Path, facts: dict[str, Any], parts: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of other parts that the same card with the same versions has left in the file."""
    if not target.is_file():
        return []
    found = json.loads(target.read_text("utf-8"))
    if any(found.get(name) != facts[name] for name in ("device", "versions")):
        return []
    return [row for row in found["rows"] if row["part"] not in parts]


def facts(device: torch.device) -> dict[str, Any]:
    """Where and with what this was measured."""
    import diffusers
    import peft
    import transformers

    cuda = device.type == "cuda"
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    versions |= {"peft": peft.__version__, "transformers": transformers.__version__}
    versions |= {"cuda": torch.version.cuda} if cuda else {}
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "memory_gib": _gib(torch.cuda.get_device_properties(device).total_memory) if cuda else 0,
        "versions": versions,
        "matmul_tflops": matmul_limit(device),
    }


def matmul_limit(device: torch.device, side: int = 8192, seconds: float = 1.0) -> float:
    """TFLOP/s of large products in the precision that the card trains in: what can be had."""
    cuda = device.type == "cuda"
    side = side if cuda else 256
    dtype = choose_strategy(device).compute
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    for _ in range(5):
        torch.matmul(left, right, out=out)
    _wait(device)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(10):
            torch.matmul(left, right, out=out)
        _wait(device)
        count += 10
    return round(2 * side**3 * count / (time.perf_counter() - started) / 1e12, 2)


def prepare(options: argparse.Namespace, device: torch.device, folder: Path) -> Bench:
    """The base model in the card's precision, and square pictures."""
    compute = choose_strategy(device).compute if device.type == "cuda" else torch.bfloat16
    base = (
        load_base(str(SMALL_BASE), device=device, dtype=compute)
        if options.tiny
        else full_size_base(device, compute)
    )
    _to_host(base)
    drawn = drawn_pictures(folder / "speed", 20)
    squares = tuple(p for p in drawn if p.facts.width == p.facts.height)
    resolution = 64 if options.tiny else RESOLUTION
    return Bench(device, base, squares, resolution, options.seconds)


def speed(
    options: argparse.Namespace,
    bench: Bench,
    flop: float,
    limit: float,
    note: Callable[[dict[str, Any]], None],
) -> None:
    """The recipe and every trick at every batch size."""
    compute = bench.base.unet.dtype
    for batch in options.batches:
        runs: list[tuple[str, Callable[[], dict[str, Any]]]] = [
            ("common recipe, eager", lambda batch=batch: measure_recipe(bench, batch))
        ]
        runs += [
            (trick.name, lambda trick=trick, batch=batch: measure_trick(bench, trick, batch))
            for trick in tricks(compute, with_compile=options.compile)
        ]
        slowest = None
        for name, run in runs:
            for row in attempts(run, name):
                if "steps_per_s" in row:
                    reached = flop * row["images_per_s"] / 1e12
                    row["tflops"] = round(reached, 2)
                    row["share_of_matmul_limit"] = round(reached / limit, 3)
                    slowest = slowest or row["steps_per_s"]
                    row["times_the_first"] = round(row["steps_per_s"] / slowest, 2)
                note({"batch": batch, **row})


def several_styles(
    options: argparse.Namespace, bench: Bench, note: Callable[[dict[str, Any]], None]
) -> None:
    """Jobs at batch 1 in one pass, beside one job alone."""
    best = replace(choose_strategy(bench.device), compute=bench.base.unet.dtype, capture=True)
    alone = None
    for styles in options.styles:
        for row in attempts(
            lambda styles=styles: measure_styles(bench, best, styles), "styles at once"
        ):
            if "images_per_s" in row:
                alone = alone or row["images_per_s"] / styles
                row["times_one_at_a_time"] = round(row["images_per_s"] / alone, 2)
            note({"styles": styles, **row})


def measure_styles(bench: Bench, strategy: Strategy, styles: int) -> dict[str, Any]:
    """So many jobs together, each in a thread of its own; a step here is one of every job."""
    _reset_peak(bench.device)
    trainer = bench.trainer(Trick("", strategy), seats=max(2, styles))
    with running_together(trainer, [bench.plan(1, seed=seed) for seed in range(styles)]) as runs:
        # The first epoch warms up and records; each epoch's end waits for the device.
        enough = time.perf_counter() + bench.seconds
        while not runs.over.is_set() and (
            time.perf_counter() < enough or min(map(len, runs.epochs)) < 3
        ):
            time.sleep(0.01)
        together = trainer.together
        measured = [list(ends) for ends in runs.epochs]
    epochs = sum((len(ends) - 1) / (ends[-1] - ends[0]) for ends in measured)
    per_step = styles / (epochs * len(bench.pictures))
    return {**_row(bench, styles, per_step), "in_one_pass": together}


def attempts(run: Callable[[], dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """One row, measured or with its error; what it held is let go either way."""
    try:
        yield {"name": name, **run()}
    except Exception as error:  # a row that fails must not cost the others
        traceback.print_exc()
        yield {"name": name, "error": f"{type(error).__name__}: {str(error)[:300]}"}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_recipe(bench: Bench, batch: int) -> dict[str, Any]:
    """The plain recipe in the same precision."""
    _reset_peak(bench.device)
    steps = plain_steps(bench.base, bench.pictures, bench.resolution, 1_000_000, batch)
    try:
        return _measure(bench, batch, lambda: next(steps))
    finally:
        steps.close()
        _to_host(bench.base)


def measure_trick(bench: Bench, trick: Trick, batch: int) -> dict[str, Any]:
    """One of our ways to run a step."""
    forward = bench.base.unet.forward
    if trick.compiled:
        bench.base.unet.forward = torch.compile(forward)
    try:
        _reset_peak(bench.device)
        started = time.perf_counter()
        with bench.trainer(trick).open(bench.plan(batch), None) as session:
            _wait(bench.device)
            opened = time.perf_counter() - started
            row = _measure(bench, batch, session.advance)
            return {**row, "open_s": round(opened, 2)}
    finally:
        if trick.compiled:
            del bench.base.unet.forward
            torch.compiler.reset()


def _measure(bench: Bench, batch: int, step: Callable[[], object]) -> dict[str, Any]:
    started = time.perf_counter()
    for _ in range(WARM_UP):
        step()
    _wait(bench.device)
    warm = time.perf_counter() - started
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < bench.seconds:
        for _ in range(4):
            step()
        _wait(bench.device)
        steps += 4
    per_step = (time.perf_counter() - started) / steps
    return {
        **_row(bench, batch, per_step),
        "warm_up_s": round(warm, 2),
        "recording_s": round(max(0.0, warm - WARM_UP * per_step), 2),
    }


def _row(bench: Bench, batch: int, per_step: float) -> dict[str, Any]:
    row = {
        "steps_per_s": round(1 / per_step, 2),
        "images_per_s": round(batch / per_step, 2),
        "ms_per_step": round(1e3 * per_step, 2),
    }
    if bench.device.type == "cuda":
        row["peak_gib"] = _gib(torch.cuda.max_memory_allocated(bench.device))
        row["reserved_gib"] = _gib(torch.cuda.max_memory_reserved(bench.device))
    return row


def count_flop(bench: Bench) -> float:
    """Of one step with one picture: torch's count, operation by operation, without what
    attention computes a second time."""
    from torch.utils.flop_counter import FlopCounterMode

    eager = Trick("", Strategy(compute=bench.base.unet.dtype))
    with bench.trainer(eager).open(bench.plan(1), None) as session:
        with FlopCounterMode(display=False) as counter:
            session.advance()
        counts = counter.get_flop_counts()["Global"]
        again = sum(n for name, n in counts.items() if re.search("attention.*backward", str(name)))
        return float(counter.get_total_flops() - _RECOMPUTED * again)


def whole_job(
    options: argparse.Namespace, device: torch.device, folder: Path, started_up: float
) -> dict[str, Any]:
    """20 pictures from files to weights, with the process's start and the base model's loading;
    then a second one.

    Args:
        started_up: seconds from the process's start to the end of its imports.
    """
    at = SMALL_BASE
    if not options.tiny:
        at = folder / "base"
        save_base(full_size_base(device, torch.float16), at)
    pictures = drawn_pictures(folder / "job", 20)
    gc.collect()
    started = time.perf_counter()
    strategy = choose_strategy(device)
    base = load_base(str(at), device=device, dtype=strategy.compute)
    trainer = DiffusionTrainer(base, decode, device, strategy=strategy)
    loaded = time.perf_counter() - started
    resolution = 64 if options.tiny else RESOLUTION
    parameters = TrainingParameters(epochs=options.epochs, resolution=resolution, rank=RANK)
    plan = TrainingPlan(style_id=1, pictures=pictures, tags=(), parameters=parameters)
    row: dict[str, Any] = {"pictures": len(pictures), "epochs": options.epochs}
    row |= {"imports_s": round(started_up, 2), "load_base_s": round(loaded, 2)}
    row |= _job(trainer, plan)
    row["total_s"] = round(started_up + loaded + row["job_s"], 2)
    with trainer.open(plan, None) as session:
        opened = time.perf_counter()
        session.advance()
        _wait(device)
        row["second_job_first_step_s"] = round(time.perf_counter() - opened, 3)
    return row


def _job(trainer: DiffusionTrainer, plan: TrainingPlan) -> dict[str, Any]:
    started = time.perf_counter()
    with trainer.open(plan, None) as session:
        opened = time.perf_counter()
        while not session.finished:
            session.advance()
        weights = session.weights()
        ended = time.perf_counter()
        return {
            "encode_s": round(opened - started, 2),
            "train_s": round(ended - opened, 2),
            "job_s": round(ended - started, 2),
            "steps": session.total_steps,
            "steps_per_s": round(session.total_steps / (ended - opened), 2),
            "peak_gib": _gib(session.peak_memory),
            "weights_bytes": len(weights),
            "last_loss": session.history[-1].loss,
        }


def _to_host(base: BaseModel) -> None:
    """Where the parts that encode belong between their visits."""
    for part in (base.vae, base.text_encoder):
        torch.nn.Module.to(part, device="cpu", dtype=torch.float32)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _gib(count: int) -> float:
    return round(count / 2**30, 2)


def _slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


if __name__ == "__main__":
    main()
