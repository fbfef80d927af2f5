"""Submitting tasks and processing dead letters, with folders as broker and stores."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from application.journal import encode_job
from domain.job import JobState, TrainingJob
from domain.location import Location
from domain.progress import Progress
from domain.results import Artifact, CheckpointRef
from entrypoints.settings import Settings
from entrypoints.submit import main

TASK = str(uuid.uuid4())


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_folders_task_has_every_given_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "a.TXT", "b.png"):
        (tmp_path / "images" / name).write_text(f"of {name}")
    assert main(["images", "--tags", "ink, wash", "--epochs", "7", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    (message,) = Path("spool").glob("*.json")
    task: dict[str, Any] = json.loads(message.read_text())
    assert outcome == {"task_id": task["task_id"], "text": f"submitted {task['task_id']}"}
    data = task["data"]
    assert (data["style_id"], data["tags"]) == (1, ["ink", "wash"])
    assert data["parameters"] == {"epochs": 7}
    buckets = Path("spool/buckets")
    named = [buckets / place.removeprefix("s3://") for place in data["images"]]
    assert [path.read_text() for path in named] == ["of a.png", "of b.png"]
    assert [path.name for path in named[0].parent.glob("*.txt")] == ["a.txt"]
    assert named[0].with_suffix(".txt").read_text() == "of a.TXT"


def test_captions_with_another_extension_are_stored_as_txt(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "a.caption", "a.txt"):
        (tmp_path / "images" / name).write_text(f"of {name}")
    assert main(["images", "--caption-extension", "caption"]) == 0
    (stored,) = Path("spool/buckets").rglob("*.txt")
    assert (stored.name, stored.read_text()) == ("a.txt", "of a.caption")


def test_a_file_whose_name_is_not_utf8_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "gr\udcfcn.png").touch()
    assert main(["images"]) == 2
    assert "'gr\\udcfcn.png' is not UTF-8; rename the file" in capsys.readouterr().err


def dead(name: str, body: bytes) -> None:
    Path("spool/dead").mkdir(parents=True, exist_ok=True)
    Path("spool/dead", name).write_bytes(body)


def dead_letters_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main([*arguments, "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def test_any_dead_letter_is_printed_and_ids_are_case_insensitive(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dead("1.json", b"\xff no task")
    dead("2.json", json.dumps({"task_id": TASK}).encode())
    rows = dead_letters_of(capsys, "--dead")
    assert {row["task_id"]: row["body"][:2] for row in rows} == {None: "\ufffd ", TASK: '{"'}
    assert not any(row["put_back"] or row["dropped"] for row in rows)

    (row,) = dead_letters_of(capsys, "--replay-dead", TASK.upper())
    assert (row["task_id"], row["put_back"]) == (TASK, True)
    (row,) = dead_letters_of(capsys, "--drop-dead", "-")
    assert (row["dropped"], row["put_back"]) == (True, False)
    assert dead_letters_of(capsys, "--dead") == []


def test_processed_dead_letters_are_counted_and_an_unknown_id_rejected(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in "123":
        dead(f"{name}.json", json.dumps({"task_id": TASK[:-1] + name}).encode())
    assert main(["--drop-dead", f"{TASK[:-1]}1"]) == 0
    assert "1 dead letter dropped" in capsys.readouterr().out
    assert main(["--replay-dead"]) == 0
    assert "2 dead letters put back" in capsys.readouterr().out
    assert len(list(Path("spool").glob("*.json"))) == 2
    assert main(["--drop-dead", ""]) == 2
    assert main(["--replay-dead", TASK]) == 2
    assert "there is no such dead letter" in capsys.readouterr().err


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e x\nforged line"


def test_dead_letters_are_printed_without_terminal_codes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dead("1.json", json.dumps({"task_id": HOSTILE, "reason": HOSTILE}).encode())
    for options in ([], ["--json"]):
        assert main(["--dead", *options]) == 0
        printed = capsys.readouterr().out
        assert all(line.isprintable() for line in printed.split("\n")), printed
    assert main(["--dead"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2, "the letter and the count"


def test_a_tasks_status_is_read_from_the_store_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--status", TASK]) == 0
    assert "no worker has started it" in capsys.readouterr().out
    record = Path("spool/buckets/stylelicense-models/jobs", TASK, "journal.json")
    record.parent.mkdir(parents=True)
    job = TrainingJob(
        task_id=TASK,
        style_id=9,
        state=JobState.TRAINING,
        attempt=2,
        progress=Progress(30, 100, 300, 1000),
        checkpoint=CheckpointRef(Location("stylelicense-models", "jobs/x"), 20, 200),
    )
    record.write_text(json.dumps({"revision": 3, "writer": "w", "job": encode_job(job)}))
    assert main(["--status", TASK.upper()]) == 0
    printed = capsys.readouterr().out
    for fact in (
        TASK,
        "style 9",
        "training",
        "attempt 2",
        "epoch 30 of 100",
        "checkpoint: epoch 20",
    ):
        assert fact in printed
    assert "no worker runs it now" in printed

    now = datetime.now(UTC)
    lease = {"owner": "worker-7", "revision": 1, "seconds": 60.0}
    lease["expires_at"] = (now + timedelta(seconds=60)).isoformat()
    record.with_name("lease.json").write_text(json.dumps(lease))
    assert main(["--cancel", TASK]) == 0
    capsys.readouterr()
    assert main(["--status", TASK, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["worker"], status["cancelling"]) == (
        "training",
        "worker-7",
        True,
    )
    assert status["job"]["progress"]["current_epoch"] == 30

    artifact = Artifact(Location("stylelicense-models", "models/x"), "ab" * 32, 4)
    finished = replace(job, state=JobState.COMPLETED, artifact=artifact)
    record.write_text(json.dumps({"revision": 4, "writer": "w", "job": encode_job(finished)}))
    assert main(["--status", TASK]) == 0
    assert "worker worker-7 writes its report" in capsys.readouterr().out

    record.write_text("{}")
    assert main(["--status", TASK]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_the_cancellation_of_a_task_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cancel", TASK.upper(), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["task_id"], outcome["state"]) == (TASK, "unknown")
    assert main(["--cancel", "no id"]) == 2
    assert "--cancel no id: this is not a task id" in capsys.readouterr().err


def test_a_misspelt_setting_causes_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RABITMQ_HOST", "broker")
    assert main(["--dead"]) == 0
    assert "did you mean RABBITMQ_HOST?" in capsys.readouterr().err


def test_an_invalid_task_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("task.json").write_text("hello")
    assert main(["task.json"]) == 2
    assert "task.json: message is 'hello': send JSON" in capsys.readouterr().err


def test_a_task_file_is_published_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"style_id": 7, "images": ["s3://stylelicense-training-data/a.png"] * 10}
    task = {"task_id": TASK, "type": "model_training", "data": data}
    Path("task.json").write_text(json.dumps(task, indent=3))
    assert main(["task.json"]) == 0
    assert capsys.readouterr().out == f"submitted {TASK}\n"
    (message,) = Path("spool").glob("*.json")
    assert message.read_bytes() == Path("task.json").read_bytes()
