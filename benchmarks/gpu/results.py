"""The results file of a GPU: the rows of parts that can be measured separately."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARTS = ("speed", "styles", "cost", "job")
"""Parts, in the order of their rows."""
RECIPE = "plain recipe, eager"
"""Name of the recipe's rows."""
LIMITS = ("matmul_tflops", "tflop_per_image")
"""Facts from which the shares in the rows of steps are computed."""


def kept_results(target: Path, facts: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """What the file keeps when ``parts`` are measured: the rows of the other parts, if they are of
    the same GPU and the same versions, and the limits that kept rows of steps refer to."""
    if not target.is_file():
        return {"rows": []}
    results = json.loads(target.read_text("utf-8"))
    if any(results.get(name) != facts[name] for name in ("device", "versions")):
        return {"rows": []}
    rows = [row for row in results["rows"] if row["part"] not in parts]
    steps = any(row["part"] == "speed" for row in rows)
    return {"rows": rows, **{name: results[name] for name in (LIMITS if steps else ())}}


def write_results(target: Path, results: dict[str, Any]) -> None:
    """Replace the file at once: an interruption leaves the old one or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    new.replace(target)
