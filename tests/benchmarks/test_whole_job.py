"""The table of whole jobs."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.whole_job_tables import whole_job_tables


def test_both_workers_have_the_same_parts(tmp_path: Path) -> None:
    assert whole_job_tables(tmp_path) == "Not measured yet.\n"
    results = {
        "device": "cpu", "cores": 2, "load": 0.5, "date": "2026-11-30",
        "torch": "2.13", "base": "small", "images": 20, "epochs": 200,
        "cold": {"queue": 6.1, "steps": 70.0, "total": 80.0},
        "warm": {"queue": 0.1, "steps": 69.0, "total": 71.0},
    }  # fmt: skip
    (tmp_path / "whole-job-cpu.json").write_text(json.dumps(results))
    table = whole_job_tables(tmp_path)
    assert "| queue | 6.1 | 0.1 |" in table
    assert "| total | 80.0 | 71.0 |" in table
