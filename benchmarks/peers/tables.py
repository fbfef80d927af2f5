"""The results of `benchmarks.peers` as Markdown tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_COLUMNS = (
    "program | steps/s | command to file, s | memory, MB | "
    "speed ratio, this project / program | time ratio, program / this project"
)


def peers_tables(folder: Path) -> str:
    """A table for each ``peers-*.json`` in the folder, or a sentence if there is none."""
    files = sorted(folder.glob("peers-*.json"))
    if not files:
        return "Not measured yet.\n"
    return "\n".join(_table(json.loads(file.read_text("utf-8"))) for file in files)


def _table(results: dict[str, Any]) -> str:
    versions = "; ".join(
        f"{name}: " + ", ".join(f"{library} {version}" for library, version in found.items())
        for name, found in results["versions"].items()
    )
    head = (
        f"**{results['device']}**, measured on {results['date']}: base model {results['base']}, "
        f"{results['resolution']} px, batch {results['batch_size']}, rank {results['rank']}, "
        f"{results['steps']} steps; the programs took turns. Each figure is the median (lowest to "
        f"highest) of {results['rounds']} runs.\n"
    )
    rule = " | ".join("---" for _ in _COLUMNS.split("|"))
    rows = "".join(f"| {_row(row)} |\n" for row in results["rows"])
    return f"{head}\n| {_COLUMNS} |\n| {rule} |\n{rows}\nVersions: {versions}.\n"


def _row(row: dict[str, Any]) -> str:
    memory = row["peak_mb"] if row["gpu_peak_mb"] is None else row["gpu_peak_mb"]
    ratios = [
        "{} ({} to {})".format(*row[name]) for name in ("our_speed_ratio", "our_total_ratio")
    ]
    return " | ".join(
        map(str, [row["program"], row["steps_per_s"], row["total_s"], memory, *ratios])
    )
