"""The worker and submit as processes, on folders in place of a broker and buckets."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from assets.drawing import draw_style_set
from entrypoints import caption, submit, train, worker
from tests.services.commands import ROOT, run

pytestmark = pytest.mark.integration

HEAVY = {"torch", "diffusers", "numpy", "pydantic", "PIL", "boto3", "pika", "requests"}


def test_a_submitted_folder_becomes_a_style_in_the_bucket(tmp_path: Path) -> None:
    draw_style_set(tmp_path / "images", count=2, seed=3)
    first = min((tmp_path / "images").glob("*.txt"))
    first.rename(first.with_suffix(".TXT"))
    submitted = run(
        *("submit", "images", "--style-id", "9", "--epochs", "1", "--resolution", "64"),
        *("--sample-prompt", "a red circle"),
        cwd=tmp_path,
    )
    assert submitted.returncode == 0, submitted.stderr
    (message,) = (tmp_path / "spool").glob("*.json")
    task = json.loads(message.read_text())
    assert task["type"] == "model_training"
    assert len(task["data"]["images"]) == 2
    buckets = tmp_path / "spool" / "buckets"
    assert len(list((buckets / "stylelicense-training-data").rglob("*.txt"))) == 2

    worked = run("worker", "--once", cwd=tmp_path, MIN_IMAGES="2")
    assert worked.returncode == 0, worked.stderr
    models = buckets / "stylelicense-models"
    assert (models / "models" / "style_9.safetensors").is_file()
    journal = json.loads((models / "jobs" / task["task_id"] / "journal.json").read_text())
    assert journal["job"]["state"] == "completed"
    assert not list((tmp_path / "spool").glob("*.json"))

    again = run("submit", str(save(tmp_path / "again.json", task)), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    repeated = run("worker", "--once", cwd=tmp_path, MIN_IMAGES="2")
    assert "training on 2 images" not in repeated.stderr, "the same task is not trained twice"


def save(path: Path, task: object) -> Path:
    path.write_text(json.dumps(task))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an image folder and a file that is not a task."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"1")
    (tmp_path / "task.json").write_text('{"type": "model_training", "data": {}}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["task.json"], "task.json: task_id is missing: give a UUID"),
        (["images", "--style-id", "0"], "--style-id 0: give a whole number from 1 to"),
        (["images", "--tags", "x" * 101], '--tags "xxx'),
        (["images", "--epochs", "0"], "--epochs 0: "),
        (["task.json", "--epochs", "5", "--style-id", "77"], "--epochs: applies only to a folder"),
        (["--dead", "--tags", "a"], "--tags: applies only to a folder"),
    ],
)
def test_submit_rejects_in_one_line_before_storing_anything(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (folder / "spool").exists()


def test_submit_reports_how_many_images_a_folder_may_have(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(100):
        (folder / "images" / f"{number}.png").write_bytes(b"1")
    assert submit.main(["images"]) == 2
    assert capsys.readouterr().err == "error: images: has 101 images; give at most 100\n"


def test_a_worker_does_not_wait_for_an_unusable_spool_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "spool").touch()
    monkeypatch.setenv("BASE_MODEL", str(ROOT / "assets" / "small_base"))
    assert worker.main(["--once"]) == 2
    assert capsys.readouterr().err.startswith("error: SPOOL_DIR='spool': ")


def test_every_log_line_has_the_configured_format_and_the_workers_name(folder: Path) -> None:
    (folder / ".env").write_text('MIN_IMAGES=2\nRABBITMQ_PASSWRD=x\nRABBITMQ_USER="open\n')
    worked = run("worker", "--once", cwd=folder, LOG_FORMAT="json", WORKER_NAME="atelier-1")
    assert worked.returncode == 0, worked.stderr
    lines = [json.loads(line) for line in worked.stderr.splitlines()]
    messages = [line["message"] for line in lines]
    assert messages[0] == ".env, line 3 is ignored: write NAME=value, and close its quotes"
    assert messages[1] == "RABBITMQ_PASSWRD is not a setting: did you mean RABBITMQ_PASS?"
    (name,) = {line["worker"] for line in lines}
    assert name.startswith("atelier-1-")


@pytest.mark.parametrize("arguments", [["train", "images", "--out", "out"], ["caption", "images"]])
def test_a_command_without_a_queue_names_an_ignored_line_too(
    arguments: list[str], folder: Path
) -> None:
    (folder / ".env").write_text('RABBITMQ_USER="open\n')
    done = run(*arguments, cwd=folder)
    assert done.returncode == 2
    assert ".env, line 1 is ignored" in done.stderr


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(train, ["images", "--out", "out"]), (caption, ["images", "--caption-model", "a/model"])],
)
def test_a_named_device_is_looked_for_among_the_gpus_of_the_env_file(
    command: ModuleType, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visible: list[str | None] = []

    def gpus() -> int:
        visible.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return 0

    draw_style_set(tmp_path / "images", count=1, seed=3)
    (tmp_path / ".env").write_text("CUDA_VISIBLE_DEVICES=3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # and again at the end
    monkeypatch.setattr("entrypoints.devices.gpus_of_torch", gpus)
    assert command.main([*arguments, "--device", "cuda"]) == 2
    assert visible == ["3"]


def test_sentry_gets_the_workers_name(folder: Path) -> None:
    received: list[bytes] = []

    class Sentry(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            zipped = self.headers.get("Content-Encoding") == "gzip"
            received.append(gzip.decompress(body) if zipped else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (folder / "spool").mkdir()
    (folder / "spool" / "task.json").write_text('{"type": "model_training", "data": {}}')
    with ThreadingHTTPServer(("127.0.0.1", 0), Sentry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        dsn = f"http://public@127.0.0.1:{server.server_port}/1"
        worked = run("worker", "--once", cwd=folder, SENTRY_DSN=dsn, WORKER_NAME="atelier-1")
        server.shutdown()
    assert "message moved to the dead letters" in worked.stderr
    assert b'"server_name":"atelier-1-' in b"".join(received)


def test_a_worker_rejects_json_without_a_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert worker.main(["--once", "--json"]) == 2
    assert capsys.readouterr().err == "error: --json: has no effect without --check\n"


@pytest.mark.parametrize("slots", ["1", "2"])
def test_a_worker_that_leaves_tasks_on_the_queue_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, slots: str
) -> None:
    monkeypatch.setenv("BASE_MODEL", str(ROOT / "assets" / "small_base"))
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("JOBS_TOGETHER", slots)
    monkeypatch.setenv("STATUS_PORT", "0")
    monkeypatch.setenv("IDLE_SECONDS", "0.1")
    assert worker.main(["--once"]) == 0
    monkeypatch.setenv("MIN_DISK_GB", "1e9")
    assert worker.main(["--once"]) == 1


@pytest.mark.parametrize("name", ["train", "worker", "submit"])
def test_help_needs_no_heavy_import(name: str) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{name}', '--help']\n"
        f"try: runpy.run_module('entrypoints.{name}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"heavy = {HEAVY} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "examples" in done.stdout or "exit codes" in done.stdout
