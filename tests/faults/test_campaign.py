"""A short run of the campaign; `make faults` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import campaign

REFERENCES: dict[int, bytes] = {}
"""Files of undisturbed runs, trained once for all campaigns here."""


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("runs", "together", "store", "seed"),
    [(3, 3, "s3", 20260122), (3, 1, "gcs", 20260123)],
)
def test_no_task_is_lost_trained_twice_or_announced_twice(
    runs: int, together: int, store: str, seed: int, tmp_path: Path
) -> None:
    verdict = campaign(runs, 2, seed, tmp_path, together=together, store=store, known=REFERENCES)
    assert verdict.faults >= runs
    assert verdict.good, "\n".join([verdict.line(), *verdict.remarks])
    assert (verdict.max_together > 1) == (together > 1)
