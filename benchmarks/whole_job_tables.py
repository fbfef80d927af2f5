"""The results of `benchmarks.whole_job` as Markdown tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def whole_job_tables(folder: Path) -> str:
    """A table for each ``whole-job-*.json`` in the folder, or a sentence if there is none."""
    files = sorted(folder.glob("whole-job-*.json"))
    if not files:
        return "Not measured yet.\n"
    return "\n".join(whole_job_table(json.loads(file.read_text("utf-8"))) for file in files)


def whole_job_table(results: dict[str, Any]) -> str:
    """Seconds of each part, of a cold and a warm worker."""
    cold, warm = results["cold"], results["warm"]
    names = [*cold, *(name for name in warm if name not in cold)]
    names.append(names.pop(names.index("total")))
    rows = "".join(
        f"| {name} | {cold.get(name, '-')} | {warm.get(name, '-')} |\n" for name in names
    )
    return (
        f"**{results['device']}**, {results['cores']} cores (load {results['load']}), "
        f"{results['date']}, torch {results['torch']}, {results['base']}, "
        f"{results['images']} images, {results['epochs']} epochs.\n\n"
        f"| seconds | cold worker | warm worker |\n| --- | --- | --- |\n{rows}"
    )
