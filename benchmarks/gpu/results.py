"""The results file of a GPU: the rows of parts that can be measured separately."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARTS = ("speed", "styles", "cost", "job")
"""Parts, in the order of their rows."""


def kept_rows(target: Path, facts: dict[str, Any], parts: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of other parts in the file, if it is of the same GPU and the same versions."""
    if not target.is_file():
        return []
    results = json.loads(target.read_text("utf-8"))
    if any(results.get(name) != facts[name] for name in ("device", "versions")):
        return []
    return [row for row in results["rows"] if row["part"] not in parts]
