"""A job whose broker is killed during training is trained to its end and announced once."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.deployment import FIRST_STYLE, PARAMETERS, Deployment, a_deployment
from tests.faults.pool import server_with_wall_clock
from tests.services.broker import Broker
from tests.services.commands import a_worker
from tests.services.waiting import eventually

pytestmark = pytest.mark.faults


@pytest.fixture
def deployment(
    restartable_broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployment]:
    monkeypatch.setitem(PARAMETERS, "validation_epochs", 0)
    with a_deployment(restartable_broker, tmp_path) as made:
        yield made


def test_a_job_continues_while_its_broker_is_killed_and_is_announced_once(
    deployment: Deployment, tmp_path: Path
) -> None:
    order = deployment.order(FIRST_STYLE, 1, random.Random(1))
    deployment.publish(order.body)
    log = tmp_path / "worker.log"
    with (
        log.open("w") as stderr,
        a_worker(
            cwd=tmp_path,
            stderr=stderr,
            server=server_with_wall_clock(),
            **{**deployment.settings(), "PREVIEW_SHARE": "0"},
        ),
    ):
        eventually(lambda: deployment.backend.calls, within=120)  # progress: training has begun
        deployment.broker.kill()
        time.sleep(1.0)
        deployment.broker.start()
        eventually(lambda: deployment.backend.final, within=120)
        # The redelivered task is found to be done, and is acknowledged.
        eventually(lambda: sum(deployment.broker.depths().values()) == 0, within=60)
    (call,) = deployment.backend.final
    assert (call.kind, call.style_id) == ("complete", FIRST_STYLE)
    assert "resumes from epoch" not in log.read_text(), "the training was not disturbed"
