"""The worker and submit as processes, on folders in place of a broker and buckets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from assets.drawing import draw_style_set
from tests.services.commands import ROOT, run

pytestmark = pytest.mark.integration

HEAVY = {"torch", "diffusers", "numpy", "pydantic", "PIL", "boto3", "pika", "requests"}


def test_a_submitted_folder_becomes_a_style_in_the_bucket(tmp_path: Path) -> None:
    draw_style_set(tmp_path / "pictures", count=10, seed=3)
    submitted = run(
        *("submit", "pictures", "--style-id", "9", "--epochs", "1", "--resolution", "64"),
        cwd=tmp_path,
    )
    assert submitted.returncode == 0, submitted.stderr
    (message,) = (tmp_path / "spool").glob("*.json")
    task = json.loads(message.read_text())
    assert task["type"] == "model_training"
    assert len(task["data"]["images"]) == 10

    worked = run("worker", "--once", cwd=tmp_path)
    assert worked.returncode == 0, worked.stderr
    models = tmp_path / "spool" / "buckets" / "stylelicense-models"
    assert (models / "models" / "style_9.safetensors").is_file()
    journal = json.loads((models / "jobs" / task["task_id"] / "journal.json").read_text())
    assert journal["job"]["state"] == "completed"
    assert not list((tmp_path / "spool").glob("*.json"))

    again = run("submit", str(save(tmp_path / "again.json", task)), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    repeated = run("worker", "--once", cwd=tmp_path)
    assert "training on 10 pictures" not in repeated.stderr, "the same task is not trained twice"


def save(path: Path, task: object) -> Path:
    path.write_text(json.dumps(task))
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no such file or folder"),
        (["task.json"], "task_id"),
    ],
)
def test_submit_refuses_what_is_no_task_in_one_line(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "task.json").write_text('{"type": "model_training", "data": {}}')
    refused = run("submit", *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert said in refused.stderr


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
