"""A step and a task stay short to read: through few files and functions, not deep."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.hops import LIMITS, TASK_LIMITS, hops_of_a_task, hops_of_each_way


@pytest.mark.integration
def test_a_step_passes_through_few_files_and_functions(tmp_path: Path) -> None:
    found = {name: hops.counts for name, hops in hops_of_each_way(tmp_path).items()}
    over = {
        name: counts
        for name, counts in found.items()
        if any(count > limit for count, limit in zip(counts, LIMITS[name], strict=True))
    }
    assert found.keys() == LIMITS.keys()
    assert not over


@pytest.mark.integration
def test_a_task_passes_through_few_files_and_functions(tmp_path: Path) -> None:
    found = hops_of_a_task(tmp_path).without_observers.counts
    assert all(count <= limit for count, limit in zip(found, TASK_LIMITS, strict=True)), found
