"""Write measured figures into the documentation: `python -m benchmarks.pages`.

Run `make bench`, `make bench-gpu`, `python -m benchmarks.peers` or `python -m benchmarks.service`
first: they write the files that this command reads.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.first_step import first_step_table
from benchmarks.gpu.tables import gpu_tables, measured
from benchmarks.measuring_cost import cost_sentence
from benchmarks.peers.tables import peers_tables
from benchmarks.service.tables import service_tables
from benchmarks.whole_job_tables import whole_job_tables

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def main() -> None:
    """Replace the marked blocks of the pages with the latest results."""
    for page in PAGES:
        page.write_text(filled(page.read_text("utf-8")), "utf-8")


def filled(text: str) -> str:
    """Return the page with measured figures in its marked blocks."""
    tables = {
        "start": lambda: first_step_table(_results("first-step-cpu")),
        "cpu": lambda: figures_table(_results("cpu")),
        "gpus": lambda: gpu_tables(FOLDER),
        "peers": lambda: peers_tables(FOLDER),
        "jobs": lambda: whole_job_tables(FOLDER),
        "service": lambda: service_tables(_results("service")),
    }
    return BLOCK.sub(lambda block: block[1] + tables[block[2]]() + block[3], text)


def _results(name: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return results


def figures_table(results: dict[str, Any]) -> str:
    """The results of `benchmarks.cpu` as a Markdown table."""
    low, high = results["ratio (lowest, highest)"]
    rows = [
        ("trainer", f"{results['trainer, steps/s (median)']} steps/s"),
        ("plain recipe in the same run", f"{results['plain recipe, steps/s (median)']} steps/s"),
        (
            f"ratio, median of {results['rounds']} rounds (lowest to highest)",
            f"{results['ratio (median)']} ({low} to {high})",
        ),
        (
            "4 styles in one pass",
            f"{results['4 styles at once, steps/s of all (median)']} steps/s of all",
        ),
        ("peak memory, without previews", f"{results['peak memory, MB']} MB"),
        (
            "`python -m entrypoints.train --help`",
            f"{results['train --help, s (lowest of 5)']} s",
        ),
    ]
    if "measured losses and scores" in results:  # missing in older files
        cost = cost_sentence(results["measured losses and scores"])
        rows.append(("cost of measured losses and scores of previews", cost))
    if "full size: ratio" in results:
        rows += _full_size(results)
    head = f"{measured(results)}, small base, batch 1, one CPU thread, torch {results['torch']}"
    body = "".join(f"| {name} | {value} |\n" for name, value in rows)
    return f"| {head} | |\n| --- | --- |\n{body}"


def _full_size(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of the model with SD 1.5's own shapes."""

    def of(name: str) -> Any:
        return results[f"full size: {name}"]

    return [
        (
            "in SD 1.5's shapes, random weights, 512 px: trainer",
            f"{of('trainer, s/step (median)')} s/step",
        ),
        ("the plain recipe there", f"{of('plain recipe, s/step (median)')} s/step"),
        (
            "ratio there, by the clock and by processor time",
            f"{of('ratio')}, {of('ratio of processor time')}",
        ),
        (
            "peak memory there, trainer and recipe",
            f"{of('trainer, peak memory, MB')} MB, {of('plain recipe, peak memory, MB')} MB",
        ),
    ]


if __name__ == "__main__":
    main()
