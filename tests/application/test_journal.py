"""The job record, also between workers of two versions."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

import pytest

from adapters.memory import MemoryBlobStore
from application.event_bus import EventSink, WorkerEvent
from application.fenced_blob import MAX_RECORD_BYTES, RecordDamaged, read_json
from application.job_store import JobStore, StorageKeys
from application.journal import (
    RecordNewer,
    decode_job,
    decode_record,
    encode_job,
)
from domain.failure import Failure, FailureCode
from domain.job import JobState, TrainingJob
from domain.location import Bucket, Location
from domain.parameters import TrainingParameters
from domain.progress import Progress
from domain.results import Artifact, CheckpointRef, TrainingMetric
from tests.application.world import World

JOB = TrainingJob(
    task_id="task-1",
    style_id=7,
    state=JobState.UPLOADING,
    attempt=2,
    failures=1,
    waits=True,
    second_try=True,
    parameters=TrainingParameters(epochs=4, resolution=512, sample_prompts=("a fox",)),
    progress=Progress(4, 4, 80, 80, 0.1, 9.5),
    checkpoint=CheckpointRef(Location("styles", "jobs/task-1/4"), 4, 80),
    metric=TrainingMetric(0.1, 4, 80, 2),
    artifact=Artifact(Location("styles", "style.safetensors", "gs"), "00ff", 12),
    failure=Failure(FailureCode.GPU_OOM, "full", retryable=True),
    notifications=1,
)
"""Every field differs from its default, although no real job has all of them set."""


def store(blobs: MemoryBlobStore, events: EventSink = lambda _: None) -> JobStore:
    return World().store(blobs=blobs, events=events, keys=StorageKeys(Bucket("styles")))


def written(job: TrainingJob) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(json.dumps(encode_job(job)))
    return record


def test_a_job_is_read_as_it_was_written() -> None:
    assert all(getattr(JOB, field.name) != field.default for field in fields(JOB))
    assert decode_job(written(JOB)) == JOB


def test_the_record_keeps_the_names_of_version_0_1() -> None:
    """Workers of both versions take jobs over from one another during an update."""
    record = written(JOB)
    assert record["setbacks"] == 1
    assert record.keys() == {
        *("task_id", "style_id", "state", "attempt", "setbacks", "waits", "parameters"),
        *("progress", "checkpoint", "metric", "artifact", "failure", "announcements"),
        "second_try",  # since 0.2; older workers drop it
    }


@pytest.mark.parametrize("part", [None, "progress", "metric"])
def test_unknown_fields_of_a_newer_worker_are_ignored(part: str | None) -> None:
    record = written(JOB)
    (record[part] if part else record)["invented_later"] = {"by": "whom"}
    assert decode_job(record) == JOB


@pytest.mark.parametrize(
    ("part", "name", "value", "problem"),
    [
        ("parameters", "invented_later", 3, "it has invented_later"),
        ("parameters", "rank", 9999, "it has rank=9999: .*"),
        (None, "state", "invented_later", "JobState invented_later"),
        ("failure", "code", "INVENTED_LATER", "FailureCode INVENTED_LATER"),
    ],
)
def test_a_newer_record_version_is_left_to_a_newer_worker(
    part: str | None, name: str, value: object, problem: str
) -> None:
    record = written(JOB)
    (record[part] if part else record)[name] = value
    with pytest.raises(
        RecordNewer, match=rf"newer worker version \({problem}\): upgrade this worker"
    ):
        decode_job(record)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("parameters", []),
        ("state", None),
        ("state", 3),
        ("progress", "x"),
        ("progress", {**asdict(Progress(4, 4, 80, 80)), "current_step": "80"}),
        ("attempt", "2"),
        ("attempt", None),
        ("waits", 1),
        ("style_id", True),
        ("checkpoint", {"location": {"bucket": "styles", "key": "k"}, "epoch": 4.5, "step": 80}),
        ("artifact", {"location": {"bucket": 1, "key": "k"}, "sha256": "00ff", "size": 12}),
        ("failure", {"code": "GPU_OOM", "message": ["x"], "retryable": True}),
        ("metric", {"loss": "low", "epochs": 4, "steps": 80}),
    ],
)
def test_an_invalid_record_is_named_in_the_error(name: str, value: object) -> None:
    at, blobs = Location("styles", "jobs/task-1/journal.json"), MemoryBlobStore()
    record = {"revision": 1, "writer": "w", "job": written(JOB) | {name: value}}
    blobs.put(at, json.dumps(record).encode())
    with pytest.raises(RecordDamaged, match=r"s3://styles/jobs/task-1/journal\.json is damaged"):
        read_json(blobs, at, decode_record)


def test_an_oversized_record_is_damaged_and_not_read() -> None:
    at, blobs = Location("styles", "jobs/task-1/journal.json"), MemoryBlobStore()
    blobs.put(at, b" " * (MAX_RECORD_BYTES + 1))
    with pytest.raises(RecordDamaged, match=r"journal\.json is damaged"):
        read_json(blobs, at, decode_record)
    with pytest.raises(RecordDamaged, match=r"journal\.json is damaged"):
        store(blobs).open(JOB)


def test_fields_missing_from_an_older_record_have_defaults() -> None:
    record = written(JOB)
    del record["metric"]["best_epoch"], record["waits"]
    job = decode_job(record)
    assert not job.waits
    assert job.metric is not None
    assert job.metric.best_epoch is None


def test_reading_a_record_returns_the_job_or_none() -> None:
    at, blobs = Location("styles", "jobs/task-1/journal.json"), MemoryBlobStore()
    assert read_json(blobs, at, decode_record) is None
    job, event = TrainingJob(task_id="task-1", style_id=7).start()
    seen: list[WorkerEvent] = []
    store(blobs, seen.append).open(job).apply((job, event))
    assert read_json(blobs, at, decode_record) == job


def test_two_records_of_the_same_job_differ() -> None:
    """A write with a lost response is recognised by its content."""
    at, blobs = Location("styles", "jobs/task-1/journal.json"), MemoryBlobStore()
    records = set()
    fresh = TrainingJob(task_id="task-1", style_id=7)
    for _ in range(2):
        record = store(blobs).open(fresh)
        for _ in range(2):
            record.apply(fresh.start())
            records.add(blobs.get(at).data)
    assert len(records) == 4
