"""An operator's other commands: check, stop, cancel, list dead letters."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assets.drawing import draw_style_set
from tests.services.commands import a_worker, run
from tests.services.waiting import eventually

pytestmark = pytest.mark.integration

LONG = ["--epochs", "4000", "--resolution", "64", "--sample-prompt", "a red circle"]
QUICK: dict[str, Any] = {
    "CANCEL_POLL": "0.2",
    "LEASE_SECONDS": "3",
    "CHECKPOINT_EVERY": "1",
    "MIN_IMAGES": "2",
}


@pytest.fixture
def submitted(tmp_path: Path) -> str:
    """Publish a task that takes minutes. Returns its id."""
    draw_style_set(tmp_path / "images", count=2, seed=3)
    done = run("submit", "images", "--style-id", "9", *LONG, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def journal(cwd: Path, task_id: str) -> dict[str, object]:
    at = cwd / "spool/buckets/stylelicense-models/jobs" / task_id / "journal.json"
    return json.loads(at.read_text())["job"] if at.exists() else {}


def training(cwd: Path, task_id: str) -> Callable[[], bool]:
    return lambda: bool(journal(cwd, task_id).get("checkpoint"))


def test_sigterm_requeues_the_job_and_exits_0(tmp_path: Path, submitted: str) -> None:
    with a_worker(cwd=tmp_path, **QUICK) as worker:
        eventually(training(tmp_path, submitted), within=120, running=worker)
        worker.send_signal(signal.SIGTERM)
        _, printed = worker.communicate(timeout=60)
    assert worker.returncode == 0, printed
    job = journal(tmp_path, submitted)
    assert job["state"] == "interrupted"
    assert job["setbacks"] == 0
    leases = list((tmp_path / "spool/buckets").rglob("lease.json"))
    assert [json.loads(lease.read_text())["owner"] for lease in leases] == [""]
    assert len(list((tmp_path / "spool").glob("*.json"))) == 1, "the message is on the queue"


def test_a_running_job_is_cancelled_at_its_next_step(tmp_path: Path, submitted: str) -> None:
    with a_worker("--once", cwd=tmp_path, **QUICK) as worker:
        eventually(training(tmp_path, submitted), within=120, running=worker)
        cancelled = run("submit", "--cancel", submitted.upper(), cwd=tmp_path)
        assert "requested (it is training now)" in cancelled.stdout, cancelled.stderr
        _, printed = worker.communicate(timeout=60)
    assert worker.returncode == 0, printed
    assert journal(tmp_path, submitted)["state"] == "cancelled"
    again = run("submit", "--cancel", submitted, cwd=tmp_path)
    assert "is cancelled already" in again.stdout


def test_a_waiting_task_that_is_cancelled_is_skipped(tmp_path: Path, submitted: str) -> None:
    cancelled = run("submit", "--cancel", submitted, cwd=tmp_path)
    assert cancelled.returncode == 0, cancelled.stderr
    assert "no worker has started it yet" in cancelled.stdout
    worked = run("worker", "--once", cwd=tmp_path, **QUICK)
    assert worked.returncode == 0, worked.stderr
    assert "training on 2 images" not in worked.stderr
    assert journal(tmp_path, submitted)["state"] == "cancelled"


def test_the_check_prints_successes_and_failures(tmp_path: Path) -> None:
    good = run("worker", "--check", "--json", cwd=tmp_path)
    assert (good.returncode, good.stderr) == (0, ""), good.stdout
    findings = json.loads(good.stdout)
    details = {finding["part"]: finding["detail"] for finding in findings}
    assert details["queue"] == "the folder spool; waiting: 0, dead: 0"
    found = {finding["part"]: finding["works"] for finding in findings}
    assert found == dict.fromkeys(found, True)
    assert {"queue", "models", "backend", "device", "base model"} <= set(found)
    assert not list((tmp_path / "spool/buckets").rglob("check/*")), "nothing is left of the trial"

    (tmp_path / "file").write_text("")
    wrong: dict[str, Any] = {"STORAGE_DIR": "file", "BASE_MODEL": "nowhere"}
    bad = run("worker", "--check", cwd=tmp_path, **wrong)
    assert bad.returncode == 1
    failed = [
        line.split("  ")[1].strip()
        for line in bad.stdout.splitlines()
        if line.startswith("FAILED")
    ]
    assert failed == ["models", "base model"]
    assert "Traceback" not in bad.stdout + bad.stderr


def test_every_wrong_setting_is_named_before_anything_starts(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"RABBITMQ_HOST": "x", "BASE_MODEL": ""}
    rejected = run("worker", cwd=tmp_path, **wrong, LEASE_SECONDS="1", SHUTDOWN_TIMEOUT="no")
    assert rejected.returncode == 2
    lines = rejected.stderr.strip().splitlines()
    assert len(lines) == 3, rejected.stderr
    assert all(line.startswith("error: ") for line in lines)
    assert any("SHUTDOWN_TIMEOUT='no'" in line for line in lines), rejected.stderr
