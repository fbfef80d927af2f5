"""A short run of the campaign; `make faults` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import campaign
from tests.faults.deployment import a_deployment
from tests.services.broker import Broker

REFERENCES: dict[int, bytes] = {}
"""Files of undisturbed runs, trained once for all campaigns here."""


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("runs", "together", "store", "seed"),
    [(3, 3, "s3", 20260122), (2, 1, "gcs", 20260123)],
)
def test_no_task_is_lost_trained_twice_or_announced_twice(
    restartable_broker: Broker, tmp_path: Path, runs: int, together: int, store: str, seed: int
) -> None:
    with a_deployment(restartable_broker, tmp_path, store) as deployment:
        verdict = campaign(
            deployment, runs, 2, seed, tmp_path, together=together, known=REFERENCES
        )
    assert verdict.faults >= runs
    assert verdict.good, "\n".join([verdict.line(), *verdict.remarks])
    assert (verdict.max_together > 1) == (together > 1)
