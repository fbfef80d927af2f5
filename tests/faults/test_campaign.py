"""A short run of the campaign; `make faults` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import campaign

SEED = 20260120


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("runs", "together"), [(8, 1), (5, 3)])
def test_nothing_is_lost_trained_twice_or_announced_twice(
    runs: int, together: int, tmp_path: Path
) -> None:
    verdict = campaign(runs, workers=2, seed=SEED, folder=tmp_path, together=together)
    assert verdict.faults >= runs
    assert verdict.good, "\n".join([verdict.line(), *verdict.remarks])
    assert (verdict.most_together > 1) == (together > 1)
