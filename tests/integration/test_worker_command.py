"""The worker and submit as processes, on folders in place of a broker and buckets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from assets.drawing import draw_style_set
from entrypoints import submit, worker
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
