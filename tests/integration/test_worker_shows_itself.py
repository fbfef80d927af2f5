"""A worker process as its operator sees it: the page, the health checks, the metrics, the logs."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from assets.drawing import draw_style_set
from entrypoints.worker import main
from tests.services.commands import a_worker, environment, run
from tests.services.ports import free_ports

pytestmark = pytest.mark.integration

TASK = ["--style-id", "9", "--json", "--epochs", "300", "--resolution", "64"]
TASK += ["--sample-prompt", "a red circle"]
TOKEN = "correct-horse-battery-staple"
SHOWN: dict[str, Any] = {
    "WORKER_NAME": "worker-1",
    "STATUS_PORT": "9108",
    "STATUS_TOKEN": TOKEN,
    "MIN_DISK_GB": "0",
    "MIN_IMAGES": "5",
    "CHECKPOINT_EVERY": "4",
}


@dataclass
class Worker:
    """A worker process and its log, read line by line."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)

    def read_until(self, wanted: str) -> None:
        """Read the log up to a line with this message."""
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self.lines.append(json.loads(text))
            if wanted in self.lines[-1]["message"]:
                return
        raise AssertionError(f"the worker ended without {wanted!r}: {self.lines}")

    def get(self, path: str, token: str | None = TOKEN) -> tuple[int, str]:
        """The response's status and body."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            request = urllib.request.Request(f"{self.url}{path}", headers=headers)
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, response.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/api/status")[1])
        return found

    def wait_for(self, what: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        deadline = time.monotonic() + 200
        while not what(status := self.status()):
            assert self.process.poll() is None, "the worker has ended"
            assert time.monotonic() < deadline, status
            time.sleep(0.2)
        return status


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A spool with one task, long enough to be observed."""
    draw_style_set(tmp_path / "images", count=5, seed=3)
    done = run("submit", "images", *TASK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "task_id").write_text(json.loads(done.stdout)["task_id"])
    return tmp_path


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[Worker]:
    with a_worker(cwd=folder, **{**SHOWN, **settings}) as process:
        found = Worker(process)
        found.read_until("status page: ")
        found.url = found.lines[-1]["message"].removeprefix("status page: ")
        yield found


@pytest.fixture
def worker(folder: Path) -> Iterator[Worker]:
    with running(folder) as found:
        yield found


def test_a_worker_shows_its_running_job_and_stores_its_log(worker: Worker, folder: Path) -> None:
    task_id = (folder / "task_id").read_text()
    assert worker.get("/health/live", token=None) == (200, "live\n")
    assert worker.get("/api/status", token=None)[0] == 401

    status = worker.wait_for(lambda status: status["job"] and len(status["job"]["curve"]) >= 3)
    name = status["worker"]["name"]
    assert name.startswith("worker-1-")
    assert status["worker"]["state"] == "training"
    assert status["worker"]["device"] == "cpu"
    job = status["job"]
    assert (job["task_id"], job["style_id"], job["attempt"]) == (task_id, 9, 1)
    assert job["images"] == 5
    assert 0 < job["progress"]["step"] < job["progress"]["steps"] == 1500

    previews = worker.wait_for(lambda status: status["previews"])["previews"]
    assert (previews["style_id"], previews["epoch"]) == (9, 4), "of the first checkpoint"
    code, image = worker.get(previews["pairs"][0]["after"])
    assert code == 404 or image[1:4] == "PNG", "unless there are newer ones already"

    worker.wait_for(lambda status: status["queues"]["trouble"] is None)
    code, ready = worker.get("/health/ready", token=None)
    assert (code, json.loads(ready)["ready"]) == (200, True), ready
    metrics = worker.get("/metrics")[1]
    assert 'style_trainer_phase{phase="training",slot="0"} 1.0' in metrics
    assert 'style_trainer_worker_info{version="' in metrics
    assert "style_trainer_deliveries_total 1.0" in metrics
    assert 'style_trainer_lease_writes_total{result="ok"}' in metrics
    settings = {
        row["name"]: row["value"] for row in json.loads(worker.get("/api/configuration")[1])
    }
    assert settings["STATUS_TOKEN"] == "set"
    assert settings["WORKER_NAME"] == "worker-1"
    assert TOKEN not in json.dumps(settings)

    worker.process.send_signal(signal.SIGTERM)
    worker.read_until(f"worker {name} exits")
    assert worker.process.wait(timeout=60) == 0

    of_job = [line for line in worker.lines if "task_id" in line]
    assert {line["task_id"] for line in of_job} == {task_id}
    assert {line["worker"] for line in of_job} == {name}
    assert any(line.get("attempt") == 1 for line in of_job)
    ends = [line for line in worker.lines if line["message"].endswith(" exits")]
    assert "task_id" not in ends[-1]
    bucket = folder / "spool" / "buckets" / "stylelicense-models"
    (log,) = (bucket / "jobs" / task_id / "logs").glob("*.jsonl")
    stored = [json.loads(line) for line in log.read_text().splitlines()]
    assert stored == [line for line in of_job if line in stored]
    assert any("interrupted" in line["message"] for line in stored)


def test_a_worker_without_its_broker_is_not_ready_and_keeps_serving(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    unreachable = {
        "RABBITMQ_HOST": "127.0.0.1",
        "RABBITMQ_PORT": str(port),
        "RABBITMQ_PASS": "a-password-of-the-broker",
        "BACKEND_API_URL": "http://127.0.0.1:9",
        "INTERNAL_API_TOKEN": "a-token-of-the-backend-that-is-long-enough",
        "STORAGE_DIR": "buckets",
    }
    with running(tmp_path, **unreachable) as worker:
        worker.read_until("waits for tasks")
        status = worker.wait_for(
            lambda status: "connection was refused" in (status["queues"]["trouble"] or "")
        )
        assert status["worker"]["state"] == "idle"
        code, response = worker.get("/health/ready", token=None)
        assert code == 503
        ready = json.loads(response)["checks"]
        assert (ready["Queue"], ready["Base model"]) == (False, True)
        reasons = {check["name"]: check["reason"] for check in status["checks"]}
        assert f"127.0.0.1:{port}" in reasons["Queue"]
        assert "style_trainer_queue_up 0.0" in worker.get("/metrics")[1]
        worker.process.send_signal(signal.SIGTERM)
        worker.read_until(" exits")
        assert worker.process.wait(timeout=60) == 0
    assert {line["logger"].split(".")[0] for line in worker.lines} <= {
        "__main__",
        "adapters",
        "application",
        "entrypoints",
    }
    for secret in ("a-password-of-the-broker", unreachable["INTERNAL_API_TOKEN"], TOKEN):
        assert secret not in json.dumps(worker.lines) + json.dumps(status) + response


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"STATUS_HOST": "0.0.0.0", "STATUS_PORT": "9108", "STATUS_TOKEN": ""},
            "STATUS_TOKEN is not set: STATUS_HOST=0.0.0.0 is open",
        ),
        ({"SENTRY_DSN": "nonsense"}, "SENTRY_DSN is not the address"),
    ],
)
def test_unsafe_and_invalid_settings_are_rejected_in_one_line(
    wrong: dict[str, str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in environment(**wrong).items():
        monkeypatch.setenv(name, value)
    assert main(["--once"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
