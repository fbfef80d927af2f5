"""Jobs of version 0.1 in today's worker.

The records in ``version_0_1`` were written by the worker of commit 927959b:

    python -m assets.demo_pictures images --count 10
    python -m entrypoints.submit images --style-id 9 --epochs 2 --resolution 64
    CHECKPOINT_EVERY=1 python -m entrypoints.worker

``begun.json`` and ``lease.json`` were there after SIGTERM at the first checkpoint, and
``completed.json`` after a second start; its task and style have other ids here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from adapters.common.tensor_file import encode
from assets.drawing import draw_style_set
from tests.services.commands import run

pytestmark = pytest.mark.integration

RECORDS = Path(__file__).with_name("version_0_1")


def test_a_started_job_starts_over_and_a_completed_one_is_kept(tmp_path: Path) -> None:
    spool, buckets = tmp_path / "spool", tmp_path / "spool" / "buckets"
    models = buckets / "stylelicense-models"
    begun = json.loads((RECORDS / "begun.json").read_text())["job"]
    completed = json.loads((RECORDS / "completed.json").read_text())["job"]
    assert begun["task_id"] != completed["task_id"]
    draw_style_set(buckets / "stylelicense-training-data" / "images", count=10, seed=3)
    images = sorted((buckets / "stylelicense-training-data" / "images").glob("*.[jp][pn]g"))
    for job, record in ((begun, "begun.json"), (completed, "completed.json")):
        folder = models / "jobs" / job["task_id"]
        folder.mkdir(parents=True)
        shutil.copy(RECORDS / record, folder / "journal.json")
        shutil.copy(RECORDS / "lease.json", folder / "lease.json")
        task = {
            "task_id": job["task_id"],
            "type": "model_training",
            "data": {
                "style_id": job["style_id"],
                "images": [
                    f"s3://stylelicense-training-data/images/{image.name}" for image in images
                ],
                "parameters": {"epochs": 2, "resolution": 64},
            },
        }
        (spool / f"{job['task_id']}.json").write_text(json.dumps(task))
    checkpoint = models / begun["checkpoint"]["location"]["key"]
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(encode({"weights": torch.zeros(1)}, {"format": "4"}))
    style = models / completed["artifact"]["location"]["key"]
    style.parent.mkdir()
    style.write_bytes(b"the style of version 0.1")

    worked = run("worker", "--once", cwd=tmp_path, MOST_SETBACKS="3", PREVIEW_SHARE="0")
    assert worked.returncode == 0, worked.stderr
    assert not list(spool.glob("*.json"))
    assert (
        "training starts over, the checkpoint cannot be used: the checkpoint has format '4'"
        in (worked.stderr)
    )
    assert "MOST_SETBACKS is now MAX_FAILURES" in worked.stderr
    job = json.loads((models / "jobs" / begun["task_id"] / "journal.json").read_text())["job"]
    assert (job["state"], job["attempt"], job["announcements"]) == ("completed", 2, 1)
    assert job["metric"]["steps"] == 20
    assert worked.stdout.count("is ready") == 1, "a completed job is not announced again"
    assert style.read_bytes() == b"the style of version 0.1"
