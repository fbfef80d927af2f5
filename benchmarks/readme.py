"""Put the measured figures into the README: `python -m benchmarks.readme`, after `make bench`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
BLOCK = re.compile(r"(<!-- figures: .*? -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def main() -> None:
    """Replace the marked block of the README."""
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    if not BLOCK.search(text):
        raise SystemExit("README.md has no block of figures")
    table = figures_table(json.loads(RESULTS.read_text("utf-8")))
    readme.write_text(BLOCK.sub(lambda block: block[1] + table + block[2], text), "utf-8")


def figures_table(results: dict[str, Any]) -> str:
    """The results of `benchmarks.trainer` as a table of Markdown."""
    low, high = results["ratio (lowest, highest)"]
    rows = [
        ("trainer", f"{results['trainer, steps/s (median)']} steps/s"),
        ("plain recipe in the same run", f"{results['plain recipe, steps/s (median)']} steps/s"),
        (
            f"ratio, median of {results['rounds']} rounds (lowest to highest)",
            f"{results['ratio (median)']} ({low} to {high})",
        ),
        ("peak memory of both", f"{results['peak memory, MB']} MB"),
        ("from the command to the first step", f"{results['command to first step, s']} s"),
        (
            "`python -m entrypoints.train --help`",
            f"{results['train --help, s (lowest of 5)']} s",
        ),
    ]
    head = f"small base, batch 1, CPU with {results['threads']} threads, torch {results['torch']}"
    body = "".join(f"| {name} | {value} |\n" for name, value in rows)
    return f"| {head} | |\n| --- | --- |\n{body}"


if __name__ == "__main__":
    main()
