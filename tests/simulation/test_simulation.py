"""A short range of seeds; ``make simulate`` runs as many as you like."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from application.fenced_blob import FencedBlob
from application.lease import Lease
from tests.simulation.run import Run
from tests.simulation.verdict import violations

EACH = 10
PATIENCE = 200
"""Number of seeds within which a planted defect must show."""


@pytest.fixture(autouse=True)
def only_errors() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, 40, EACH))
def test_no_task_is_lost_trained_twice_or_announced_twice(first: int) -> None:
    found = {
        seed: lines for seed in range(first, first + EACH) if (lines := violations(Run(seed)()))
    }
    assert found == {}, "python -m tests.simulation --show --seed ... shows what happened"


def test_a_run_is_reproducible() -> None:
    def story(run: Run) -> list[Any]:
        return [(at, who.name, event) for at, who, event in run.world.events]

    once = story(Run(3)())
    assert once
    assert story(Run(3)()) == once


def write_anyway(self: FencedBlob, data: bytes) -> None:
    self.etag = self._blobs.put(self.at, data)


def take_at_once(self: Lease, *_: Any) -> None:
    """Take the lease even if another worker holds it."""


@pytest.mark.parametrize(
    ("kind", "method", "broken"),
    [(FencedBlob, "_put", write_anyway), (Lease, "_watch", take_at_once)],
)
def test_violations_are_detected(
    monkeypatch: pytest.MonkeyPatch, kind: type, method: str, broken: Callable[..., None]
) -> None:
    monkeypatch.setattr(kind, method, broken)
    assert any(violations(Run(seed)()) for seed in range(PATIENCE))
