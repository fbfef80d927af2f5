"""The file of a card: rows of parts that can be measured one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARTS = ("speed", "styles", "job")
"""In the order in which their rows stand."""


def kept_rows(target: Path, facts: dict[str, Any], parts: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of other parts that the same card with the same versions has left in the file."""
    if not target.is_file():
        return []
    found = json.loads(target.read_text("utf-8"))
    if any(found.get(name) != facts[name] for name in ("device", "versions")):
        return []
    return [row for row in found["rows"] if row["part"] not in parts]
