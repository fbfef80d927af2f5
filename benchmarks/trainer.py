"""The trainer beside the plain recipe, on the small base: `python -m benchmarks.trainer`.

Both run in turn in the same process, several times, so that the ratio means something on a
machine that others share. Prints a table and writes it as JSON.
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
from pathlib import Path

STEPS = 60
WARM_UP = 6


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure the trainer beside the plain recipe.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/cpu.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(options.rounds, Path(scratch))
    for name, value in results.items():
        print(f"{name:32} {value}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(rounds: int, scratch: Path) -> dict[str, object]:
    """Every figure, with the device and versions it holds for."""
    import diffusers
    import torch

    from adapters.diffusion.base_model import load_base
    from adapters.diffusion.trainer import DiffusionTrainer
    from adapters.pillow import PillowInspector, decode
    from application.ports import TrainingPlan
    from assets.drawing import draw_style_set
    from benchmarks.plain_recipe import plain_steps
    from domain.parameters import TrainingParameters
    from domain.picture import Picture
    from entrypoints.default_base import SMALL_BASE

    paths = draw_style_set(scratch / "pictures", count=10, seed=1)
    inspector = PillowInspector()
    pictures = tuple(
        Picture(
            path.name,
            path.read_bytes(),
            inspector.inspect(path.read_bytes()),
            path.with_suffix(".txt").read_text().strip(),
        )
        for path in paths
    )
    base = load_base(str(SMALL_BASE), device="cpu")
    resolution = base.native_resolution
    trainer = DiffusionTrainer(base, decode, "cpu")
    plan = TrainingPlan(
        style_id=1,
        pictures=pictures,
        tags=(),
        parameters=TrainingParameters(epochs=STEPS // len(pictures), resolution=resolution),
    )

    def ours() -> Iterator[None]:
        with trainer.open(plan, None) as session:
            while not session.finished:
                session.advance()
                yield

    def plain() -> Iterator[float]:
        return plain_steps(base, pictures, resolution, STEPS)

    measured = [(steps_per_second(ours), steps_per_second(plain)) for _ in range(rounds)]
    help_seconds = min(timed("-m", "entrypoints.train", "--help") for _ in range(5))
    first_step = timed("-c", FIRST_STEP, str(scratch / "pictures"), str(scratch / "out"))
    return {
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
        "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "command to first step, s": round(first_step, 2),
        "train --help, s (lowest of 5)": round(help_seconds, 3),
    }


def steps_per_second(run: Callable[[], Iterator[object]]) -> float:
    """Speed after the warm-up; set-up and caching come before the first step and do not count."""
    started, steps = 0.0, 0
    for number, _ in enumerate(run(), start=1):
        if number == WARM_UP:
            started = time.perf_counter()
        steps = number
    return (steps - WARM_UP) / (time.perf_counter() - started)


def timed(*arguments: str) -> float:
    """Seconds that a fresh interpreter takes for ``arguments``."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


FIRST_STEP = """
import os, sys
from adapters import console
from domain.events import ProgressMade
seen = console.ProgressDisplay.__call__
def leave_at_first_step(self, event):
    if isinstance(event, ProgressMade):
        os._exit(0)
    seen(self, event)
console.ProgressDisplay.__call__ = leave_at_first_step
from entrypoints.train import main
sys.exit(main([sys.argv[1], "--out", sys.argv[2], "--device", "cpu"]))
"""
"""The local command, ended by its first step."""


if __name__ == "__main__":
    main()
