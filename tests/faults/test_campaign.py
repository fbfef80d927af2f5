"""A short run of the campaign; `make faults` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import campaign
from tests.faults.deployment import PARAMETERS, SEEDS, a_deployment
from tests.services.broker import Broker

REFERENCES: dict[int, bytes] = {}
"""Files of undisturbed runs, trained once for all campaigns here."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter tasks than those of `make faults`, of two variants that share their passes."""
    monkeypatch.setitem(PARAMETERS, "epochs", 10)
    monkeypatch.setitem(PARAMETERS, "validation_epochs", 0)
    monkeypatch.setattr("tests.faults.campaign.variants", lambda _: SEEDS)


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("runs", "together", "store", "seed"),
    # Three tasks for two workers: at least two run on one of them.
    [(3, 3, "s3", 20260373), (1, 1, "gcs", 20260282)],
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
