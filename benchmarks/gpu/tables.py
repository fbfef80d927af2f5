"""The results of `benchmarks.gpu` as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import RECIPE
from benchmarks.measuring_cost import cost_sentence

NOTHING = (
    "No GPU has been measured yet. `make bench-gpu` on one writes\n"
    "`benchmarks/results/<device>.json`, and `python -m benchmarks.pages` puts it here.\n"
)
_ABSENT = "-"


def gpu_tables(folder: Path) -> str:
    """The tables of every GPU that has a file in ``folder``."""
    files = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    per_gpu = [results for results in files if "matmul_tflops" in results]
    return "\n".join(map(device_tables, per_gpu)) if per_gpu else NOTHING


def measured(results: dict[str, Any]) -> str:
    """The measured version of this project, and the date; files of version 0.1 have neither."""
    dated = f" on {results['date']}" if "date" in results else ""
    return f"version {results.get('version', '0.1')}{dated}"


def device_tables(results: dict[str, Any]) -> str:
    """The tables of one GPU: the recipe and the best way, each optimization, several styles at
    once, and a whole job."""
    rows = results["rows"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if "batch" in row:
            steps.setdefault(row["batch"], []).append(row)
    parts = [
        f"**{results['device']}**, {results['memory_gib']} GiB, {measured(results)}, {versions}. "
        f"Large matrix products reach {results['matmul_tflops']} TFLOP/s there.\n",
        _table(
            (
                *("batch", "recipe, steps/s", "trainer, steps/s", "trainer / recipe", "ms/step"),
                *("images/s", "share of the product limit", "peak GiB (recipe)"),
            ),
            [_batch_row(batch, of_batch) for batch, of_batch in steps.items()],
        ),
        _table(
            ("steps/s", *(f"batch {batch}" for batch in steps)),
            _ways(steps),
        ),
        _table(
            ("styles at once", "in one pass", "images/s of all", "times one style", "peak GiB"),
            [_styles_row(row) for row in rows if "styles" in row],
        ),
        "".join(_cost(row) for row in rows if row["name"] == "measured losses and scores"),
        _paragraph(_job(row) for row in rows if row["part"] == "job"),
    ]
    return "\n".join(part for part in parts if part)


def _batch_row(batch: int, rows: Sequence[dict[str, Any]]) -> tuple[object, ...]:
    """The recipe and the fastest way, if both were measured."""
    done = [row for row in rows if "error" not in row]
    recipe = next((row for row in done if row["name"] == RECIPE), None)
    ways = [row for row in done if row["name"] != RECIPE]
    if recipe is None or not ways:
        return batch, *[_ABSENT] * 7
    best = max(ways, key=lambda row: float(row["steps_per_s"]))
    ratio = round(best["steps_per_s"] / recipe["steps_per_s"], 2)
    return (
        *(batch, recipe["steps_per_s"], best["steps_per_s"], ratio),
        *(best["ms_per_step"], best["images_per_s"]),
        f"{100 * best['share_of_matmul_limit']:.1f} %",
        f"{best.get('peak_gib', _ABSENT)} ({recipe.get('peak_gib', _ABSENT)})",
    )


def _ways(steps: dict[int, list[dict[str, Any]]]) -> list[tuple[object, ...]]:
    """Each way's speed, or its error, at every batch size."""
    by_name: dict[str, dict[int, object]] = {}
    for batch, rows in steps.items():
        for row in rows:
            shown = row["error"].split(":")[0] if "error" in row else row["steps_per_s"]
            eager = "" if row.get("still_recorded", True) else ", eager"
            by_name.setdefault(row["name"], {})[batch] = f"{shown}{eager}"
    return [
        (name, *(speeds.get(batch, _ABSENT) for batch in steps))
        for name, speeds in by_name.items()
    ]


def _styles_row(row: dict[str, Any]) -> tuple[object, ...]:
    if "error" in row:
        return row["styles"], row["error"].split(":")[0], *[_ABSENT] * 3
    eager = "" if row.get("still_recorded", True) else ", eager"
    return (
        *(row["styles"], f"{min(row['styles'], row['in_one_pass'])}{eager}"),
        *(row["images_per_s"], row["times_one_at_a_time"]),
        row.get("peak_gib", _ABSENT),
    )


def _cost(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"The cost of measured losses and scores was not measured: {row['error']}\n"
    return f"Cost of measured losses and scores of previews: {cost_sentence(row)}.\n"


def _job(row: dict[str, Any]) -> str:
    """Sentences for a row of the job. In older files one row has all figures, or lacks some."""
    if "error" in row:
        return f"{row['name'].capitalize()} failed: {row['error']}"
    sentences = []
    if "total_s" in row:
        sentences.append(
            f"A whole job of {row['images']} images and {row['epochs']} epochs, {row['steps']} "
            f"steps, in a process of its own: {row['total_s']} s from the process's start to "
            f"weights, of these {row['imports_s']} s to import, {row['load_base_s']} s to load "
            f"the base, {row['encode_s']} s to encode, {row['train_s']} s to train; at most "
            f"{row['peak_gib']} GiB."
        )
    if "first_epoch_s" in row:
        sentences.append(
            f"The first epoch takes {row['first_epoch_s']} s, a later one {row['epoch_s']} s, or "
            f"{row['measured_epoch_s']} s with a measurement of the loss."
        )
    if "checkpoint_s" in row:
        sentences.append(
            f"A checkpoint takes {row['checkpoint_s']} s, a round of {row['previews']} previews "
            f"{row['previews_s']} s."
        )
    if "second_job_open_s" in row:
        sentences.append(
            f"The process's next job is open, its images encoded, after "
            f"{row['second_job_open_s']} s, and its first step takes "
            f"{row['second_job_first_step_s']} s."
        )
    return " ".join(sentences)


def _paragraph(sentences: Iterable[str]) -> str:
    text = " ".join(sentences)
    return text and f"{text}\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
