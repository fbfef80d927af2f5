"""How many concurrent jobs fit a GPU."""

from __future__ import annotations

import pytest

from adapters.common.devices import MAX_JOBS, max_jobs_for_memory

GIB = 2**30


@pytest.mark.parametrize(
    ("gib", "slots"), [(0, 1), (4, 1), (6, 3), (8, 6), (12, MAX_JOBS), (140, MAX_JOBS)]
)
def test_larger_gpus_run_more_jobs_and_every_gpu_one(gib: int, slots: int) -> None:
    assert max_jobs_for_memory(gib * GIB) == slots
