"""Time from the command to its first step: `python -m benchmarks.first_step --beside DIR`.

Runs `entrypoints.train` with the small base up to its first step, in this checkout and in another
one (`git worktree add DIR COMMIT`), in turn. Prints the median seconds by the clock and of
processor time, with the lowest and highest. On a busy machine, compare only processor time. For
this checkout it also prints the seconds until the end of each part. With another checkout, writes
`benchmarks/results/first-step-cpu.json`; `python -m benchmarks.pages` puts it into the
documentation.
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
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.images import drawn_images

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("by the clock", "of processor time")
COLUMNS = ("this version", "other commit", "ratio")
PROGRAM = """
import json, os, sys, time
began = time.perf_counter()
marks = {}
from domain.events import JobStarted, ProgressMade, TrainingBegan
def note(name):
    marks[name] = time.perf_counter() - began
def watch(kind, name):
    make = kind.__init__
    def made(self, *arguments, **named):
        note(name)
        if kind is ProgressMade:
            print(json.dumps(marks), file=sys.stderr, flush=True)
            os._exit(0)
        make(self, *arguments, **named)
    kind.__init__ = made
watch(JobStarted, "base and first look at the images")
watch(TrainingBegan, "images")
watch(ProgressMade, "encoding and first step")
from entrypoints import train, local_run
note("imports of the command")
sys.exit(train.main([sys.argv[1], "--out", sys.argv[2], "--device", "cpu"]))
"""
"""Runs the command, prints the seconds at the end of each part, and exits after the first step."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time from the command to the first step.")
    parser.add_argument("--beside", type=Path, metavar="DIR", help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/first-step-cpu.json")
    )
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
        clock, busy = zip(*measured, strict=True)
        print(
            f"{checkout}: {_text(_spread(clock))} s by the clock, "
            f"{_text(_spread(busy))} s of processor time"
        )
    if options.beside:
        results = _compared(options.beside.resolve(), *times.values())
        options.json.write_text(json.dumps(results, indent=1) + "\n")
        print(first_step_table(results))


def _compared(
    other: Path, ours: list[tuple[float, float]], theirs: list[tuple[float, float]]
) -> dict[str, Any]:
    command = ["git", "-C", str(other), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    results: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1),
        "rounds": len(ours),
        "beside": commit,
    }
    for number, kind in enumerate(KINDS):
        mine, before = ([times[number] for times in side] for side in (ours, theirs))
        ratios = [a / b for a, b in zip(mine, before, strict=True)]
        columns = zip(COLUMNS, (mine, before, ratios), strict=True)
        results[kind] = {column: _spread(values) for column, values in columns}
    return results


def first_step_table(results: dict[str, Any]) -> str:
    """The times of both checkouts as a Markdown table."""
    rows = "".join(
        f"| {kind} | {' | '.join(_text(results[kind][column]) for column in COLUMNS)} |\n"
        for kind in KINDS
    )
    return (
        f"Measured on {results['date']}, {results['cores']} cores (load {results['load']}), "
        f"small base; median of {results['rounds']} alternating runs (lowest to highest).\n\n"
        f"| seconds | this version | commit {results['beside']} | ratio |\n"
        f"| --- | --- | --- | --- |\n{rows}"
    )


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


def _spread(values: Sequence[float]) -> dict[str, float]:
    spread = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    return {name: round(value, 3) for name, value in spread.items()}


def _text(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['lowest']:.2f} to {spread['highest']:.2f})"


if __name__ == "__main__":
    main()
