"""The trainer against the plain recipe: `python -m benchmarks.cpu`, or `make bench`.

On the small base both run alternately in one process, several times, so that the ratio is
meaningful on a shared machine. In SD 1.5's own shapes (``--full-size``, random weights, 512 px;
some minutes and 10 GB) each runs in a separate process, so that its memory can be measured.
Prints a table and writes it as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

STEPS = 60
WARM_UP = 6


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description="Measure the trainer beside the plain recipe.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full-size", action="store_true", help="SD 1.5's own shapes too")
    parser.add_argument(
        "--full-size-steps",
        type=int,
        default=3,
        help="measured steps of each side, after one warm-up step",
    )
    parser.add_argument("--side", choices=["trainer", "recipe"], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/cpu.json"))
    options = parser.parse_args()
    if options.side:
        print(json.dumps(full_size_side(options.side, options.full_size_steps)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(options.rounds, Path(scratch))
    if options.full_size:
        results |= measure_full_size(options.full_size_steps)
    for name, value in results.items():
        print(f"{name:32} {value}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(rounds: int, scratch: Path) -> dict[str, object]:
    """All figures, with the device and the library versions."""
    import diffusers
    import torch

    from adapters.diffusion.base.model import load_base
    from adapters.diffusion.trainer import DiffusionTrainer
    from adapters.images.decode import decode
    from benchmarks.first_step import ROOT, first_step
    from benchmarks.images import drawn_images
    from benchmarks.measuring_cost import EPOCHS, IMAGES, measuring_cost
    from benchmarks.plain_recipe import plain_steps
    from benchmarks.together import running_together
    from domain.parameters import TrainingParameters
    from domain.training_plan import TrainingPlan
    from entrypoints.cli import version
    from entrypoints.models import SMALL_BASE

    images = drawn_images(scratch / "images", 10, size=320)
    torch.set_num_threads(1)  # as the local command does with the small base
    base = load_base(str(SMALL_BASE))
    resolution = base.native_resolution
    trainer = DiffusionTrainer(base, decode, "cpu")
    plan = TrainingPlan(
        style_id=1,
        images=images,
        tags=(),
        # No validation: the recipe has none, and only steps are compared.
        parameters=TrainingParameters(
            epochs=STEPS // len(images), resolution=resolution, validation_epochs=0
        ),
    )

    def ours() -> Iterator[None]:
        with trainer.open(plan, None) as session:
            while not session.finished:
                session.advance()
                yield

    def plain() -> Iterator[float]:
        return plain_steps(base, images, resolution, STEPS)

    def four_at_once() -> float:
        shared = DiffusionTrainer(base, decode, "cpu", slots=4)
        seeds = [replace(plan, parameters=replace(plan.parameters, seed=k)) for k in range(4)]
        with running_together(shared, seeds) as runs:
            while sum(runs.steps) < 4 * WARM_UP:
                time.sleep(0.01)
            before, started = sum(runs.steps), time.perf_counter()
            while sum(runs.steps) < 4 * STEPS - 8:
                time.sleep(0.01)
            return (sum(runs.steps) - before) / (time.perf_counter() - started)

    four = [four_at_once() for _ in range(min(rounds, 3))]
    measured = [(steps_per_second(ours), steps_per_second(plain)) for _ in range(rounds)]
    peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of steps, without previews
    typical = replace(
        plan,
        images=drawn_images(scratch / "typical", IMAGES, size=320),
        parameters=replace(plan.parameters, epochs=EPOCHS),
    )
    cost = measuring_cost(trainer, typical, min(rounds, 3), time.process_time)
    help_seconds = min(timed("-m", "entrypoints.train", "--help") for _ in range(5))
    seconds, busy, marks = first_step(ROOT, scratch)
    return {
        "version": version(),
        "date": datetime.now(UTC).date().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "steps": STEPS,
        "rounds": rounds,
        "trainer, steps/s (median)": round(statistics.median(m[0] for m in measured), 2),
        "plain recipe, steps/s (median)": round(statistics.median(m[1] for m in measured), 2),
        "ratio (median)": round(statistics.median(a / b for a, b in measured), 2),
        "ratio (lowest, highest)": [
            round(min(a / b for a, b in measured), 2),
            round(max(a / b for a, b in measured), 2),
        ],
        "4 styles at once, steps/s of all (median)": round(statistics.median(four), 2),
        "measured losses and scores": cost,
        "peak memory, MB": peak_memory // 1024,
        "command to first step, s": round(seconds, 2),
        "command to first step, processor s": round(busy, 2),
        **{f"until the end of {name}, s": round(end, 2) for name, end in marks.items()},
        "train --help, s (lowest of 5)": round(help_seconds, 3),
    }


def measure_full_size(steps: int) -> dict[str, object]:
    """Figures of a few steps of each in SD 1.5's own shapes."""
    sides = {}
    for side in ("trainer", "recipe"):
        # Waiting threads sleep: a busy wait would count as processor time.
        command = ["env", "OMP_WAIT_POLICY=passive", sys.executable, "-m", "benchmarks.cpu"]
        command += ["--side", side]
        command += ["--full-size-steps", str(steps)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        sides[side] = json.loads(output.splitlines()[-1])
    ours, plain = sides["trainer"], sides["recipe"]
    return {
        "full size: trainer, s/step (median)": ours["seconds"],
        "full size: plain recipe, s/step (median)": plain["seconds"],
        "full size: ratio": round(plain["seconds"] / ours["seconds"], 2),
        "full size: trainer, processor s/step": ours["processor seconds"],
        "full size: plain recipe, processor s/step": plain["processor seconds"],
        "full size: ratio of processor time": round(
            plain["processor seconds"] / ours["processor seconds"], 2
        ),
        "full size: trainer, encoding and set-up, s": ours["set-up"],
        "full size: trainer, peak memory, MB": ours["peak"],
        "full size: plain recipe, peak memory, MB": plain["peak"],
    }


def full_size_side(side: str, count: int) -> dict[str, float]:
    """Figures of the trainer or the recipe, in this process.

    Includes the processor time of all threads: on a shared machine its ratio is more reliable
    than that of wall-clock time.
    """
    from adapters.diffusion.trainer import DiffusionTrainer
    from adapters.images.decode import decode
    from benchmarks.full_size import RESOLUTION, full_size_base
    from benchmarks.images import drawn_images
    from benchmarks.plain_recipe import plain_steps
    from domain.parameters import TrainingParameters
    from domain.training_plan import TrainingPlan

    with tempfile.TemporaryDirectory() as scratch:
        images = drawn_images(Path(scratch), 1)
    base = full_size_base("cpu")
    started = time.perf_counter()
    set_up = 0.0
    if side == "trainer":
        parameters = TrainingParameters(
            epochs=count + 1, resolution=RESOLUTION, validation_epochs=0
        )
        plan = TrainingPlan(style_id=1, images=images, tags=(), parameters=parameters)
        with DiffusionTrainer(base, decode, "cpu").open(plan, None) as session:
            set_up = time.perf_counter() - started
            times = [_seconds(session.advance) for _ in range(count + 1)]
    else:
        steps = plain_steps(base, images, RESOLUTION, count + 1)
        times = [_seconds(lambda: next(steps)) for _ in range(count + 1)]
    return {
        "seconds": round(statistics.median(clock for clock, _ in times[1:]), 2),
        "processor seconds": round(statistics.median(busy for _, busy in times[1:]), 2),
        "set-up": round(set_up, 1),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _seconds(step: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor seconds of a step."""
    started, busy = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - started, time.process_time() - busy


def steps_per_second(run: Callable[[], Iterator[object]]) -> float:
    """Speed after the warm-up, without set-up and caching."""
    started, steps = 0.0, 0
    for number, _ in enumerate(run(), start=1):
        if number == WARM_UP:
            started = time.perf_counter()
        steps = number
    return (steps - WARM_UP) / (time.perf_counter() - started)


def timed(*arguments: str) -> float:
    """Seconds to run a new interpreter with ``arguments``."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
