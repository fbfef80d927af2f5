"""Time from the command to its first step: `python -m benchmarks.first_step --beside DIR`.

Runs `entrypoints.train` with the small base up to its first step, in this checkout and in another
one (`git worktree add DIR COMMIT`), in turn. Prints the median seconds by the clock and of
processor time, with the lowest and highest. On a busy machine, compare only processor time. For
this checkout it also prints the seconds until the end of each part. Writes no file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.images import drawn_images

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import json, os, sys, time
began = time.perf_counter()
marks = {}
from adapters import console
from domain.events import JobStarted, ProgressMade, TrainingBegan
seen = console.ProgressDisplay.__call__
NAMES = {JobStarted: "base and first look at the images", TrainingBegan: "images",
         ProgressMade: "encoding and first step"}
def note(name):
    marks[name] = time.perf_counter() - began
def leave_at_first_step(self, event):
    if type(event) in NAMES:
        note(NAMES[type(event)])
    if isinstance(event, ProgressMade):
        print(json.dumps(marks), file=sys.stderr, flush=True)
        os._exit(0)
    seen(self, event)
console.ProgressDisplay.__call__ = leave_at_first_step
from entrypoints import train, local_run
note("imports of the command")
sys.exit(train.main([sys.argv[1], "--out", sys.argv[2], "--device", "cpu"]))
"""
"""Runs the command, prints the seconds at the end of each part, and exits after the first step."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time the way to the first step.")
    parser.add_argument("--beside", type=Path, metavar="DIR", help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    checkouts = [ROOT, *([options.beside.resolve()] if options.beside else [])]
    times: dict[Path, list[tuple[float, float]]] = {checkout: [] for checkout in checkouts}
    parts: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        drawn_images(Path(scratch) / "images", 10, size=320)
        for _ in range(options.rounds):
            for checkout in checkouts:
                seconds, busy, marks = first_step(checkout, Path(scratch))
                times[checkout].append((seconds, busy))
                if checkout == ROOT:
                    parts.append(marks)
    for name in parts[0]:
        until = statistics.median(marks[name] for marks in parts)
        print(f"until the end of: {name:36} {until:6.2f} s")
    for checkout, measured in times.items():
        print(f"{checkout}: {_spread([clock for clock, _ in measured])} s by the clock, "
              f"{_spread([busy for _, busy in measured])} s of processor time")  # fmt: skip
    if options.beside:
        ours, theirs = times.values()
        for number, kind in enumerate(("clock", "processor time")):
            ratios = [a[number] / b[number] for a, b in zip(ours, theirs, strict=True)]
            print(f"ratio by {kind}: {_spread(ratios)}")


def first_step(checkout: Path, scratch: Path) -> tuple[float, float, dict[str, float]]:
    """Seconds by the clock and of processor time, and the seconds at the end of each part."""
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(scratch / "images"), f"{out}/style"],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            check=True,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, busy, json.loads(done.stderr.splitlines()[-1])


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
