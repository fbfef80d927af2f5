"""A short run of the campaign; `make faults` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import campaign

SEED = 20260120


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_nothing_is_lost_trained_twice_or_announced_twice(tmp_path: Path) -> None:
    verdict = campaign(runs=8, workers=2, seed=SEED, folder=tmp_path)
    assert verdict.faults >= 8
    assert verdict.good, "\n".join([verdict.line(), *verdict.remarks])
