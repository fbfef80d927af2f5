"""What `benchmarks.gpu` has measured on a card, as tables of Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOTHING = (
    "No GPU has been measured yet. `make bench-gpu` on one writes\n"
    "`benchmarks/results/<device>.json`, and `python -m benchmarks.readme` puts it here.\n"
)
_ABSENT = "-"


def gpu_tables(folder: Path) -> str:
    """The tables of every card that has a file in ``folder``."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    cards = [results for results in found if "matmul_tflops" in results]
    return "\n".join(map(card_tables, cards)) if cards else NOTHING


def card_tables(results: dict[str, Any]) -> str:
    """One card: ways to run a step, styles at once, and a whole job."""
    rows = results["rows"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    limit = results["matmul_tflops"]
    parts = [
        f"**{results['device']}**, {results['memory_gib']} GiB, {versions}. "
        f"Large matrix products reach {limit} TFLOP/s there.\n",
        _table(
            (
                "batch",
                "way",
                "steps/s",
                "images/s",
                "ms/step",
                "of the limit",
                "times",
                "GiB",
                "s",
            ),
            [_step_row(row) for row in rows if "batch" in row],
        ),
        _table(
            ("styles at once", "in one pass", "images/s of all", "times one", "GiB"),
            [_styles_row(row) for row in rows if "styles" in row],
        ),
        "".join(_job(row) for row in rows if row["name"] == "whole job"),
    ]
    return "\n".join(part for part in parts if part)


def _step_row(row: dict[str, Any]) -> tuple[object, ...]:
    if "error" in row:
        return row["batch"], row["name"], row["error"].split(":")[0], *[_ABSENT] * 6
    share = f"{100 * row['share_of_matmul_limit']:.1f} %"
    return (
        *(row["batch"], row["name"], row["steps_per_s"], row["images_per_s"], row["ms_per_step"]),
        *(share, row["times_the_first"], row.get("peak_gib", _ABSENT), row["recording_s"]),
    )


def _styles_row(row: dict[str, Any]) -> tuple[object, ...]:
    if "error" in row:
        return row["styles"], row["error"].split(":")[0], *[_ABSENT] * 3
    return (
        *(row["styles"], row["in_one_pass"], row["images_per_s"], row["times_one_at_a_time"]),
        row.get("peak_gib", _ABSENT),
    )


def _job(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"A whole job failed: {row['error']}\n"
    return (
        f"A whole job of {row['pictures']} pictures and {row['epochs']} epochs, {row['steps']} "
        f"steps: {row['total_s']} s from the process's start to weights, of these "
        f"{row['imports_s']} s to import, {row['load_base_s']} s to load the base, "
        f"{row['encode_s']} s to encode, {row['train_s']} s to train; at most "
        f"{row['peak_gib']} GiB. The next job's first step took "
        f"{row['second_job_first_step_s']} s.\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
