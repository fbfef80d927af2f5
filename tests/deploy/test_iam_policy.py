"""deploy/iam-policy.json lets a worker do its work and nothing else: tried, in moto's IAM."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count

from adapters.s3.options import MIB, S3Options
from adapters.s3.store import S3BlobStore
from application.check_bucket import check_bucket
from application.job_store import StorageKeys
from application.ports import BlobDenied, BlobMissing, IfAbsent, IfMatch
from application.settlement import Ack
from application.stop_signal import StopSignal
from domain.location import Bucket, Location
from domain.task import TrainingTask
from tests.application.world import TASK_ID, World, a_task
from tests.deploy.files import SETTINGS, read_json

IMAGES: str = SETTINGS["AWS_STORAGE_BUCKET_NAME"].default
MODELS: str = SETTINGS["MODEL_BUCKET_NAME"].default
KEYS = StorageKeys(Bucket(MODELS))
COUNT = 10
"""Number of a task's images."""
REGION = "us-east-1"


# Before the user is there, everything is allowed: two buckets, the images, three calls to IAM.
@set_initial_no_auth_action_count(2 + COUNT + 3)
def _under_the_policy(trial: Callable[[S3BlobStore], object]) -> None:
    root: dict[str, Any] = {
        "aws_access_key_id": "r",
        "aws_secret_access_key": "r",
        "region_name": REGION,
    }
    with mock_aws():
        s3, iam = boto3.client("s3", **root), boto3.client("iam", **root)
        for bucket in (IMAGES, MODELS):
            s3.create_bucket(Bucket=bucket)
        for n in range(COUNT):
            s3.put_object(Bucket=IMAGES, Key=f"7/{n:02d}.jpg", Body=f"image {n}".encode())
        iam.create_user(UserName="worker")
        policy = json.dumps(read_json("iam-policy.json"))
        iam.put_user_policy(UserName="worker", PolicyName="worker", PolicyDocument=policy)
        key = iam.create_access_key(UserName="worker")["AccessKey"]
        options = S3Options(
            region=REGION,
            access_key_id=key["AccessKeyId"],
            secret_access_key=key["SecretAccessKey"],
            multipart_threshold=6 * MIB,
            part_size=5 * MIB,
        )
        # More than a worker allows itself: here it is the policy that has to deny it.
        trial(S3BlobStore(options, readable=[], writable=[IMAGES, MODELS], sleep=time.sleep))


def _task(**named: Any) -> TrainingTask:
    task = a_task(COUNT, **named)
    images = tuple(Location(IMAGES, image.key) for image in task.images)
    return TrainingTask(
        task_id=task.task_id, style_id=task.style_id, images=images, requested=task.requested
    )


def test_a_whole_job_runs_under_the_policy() -> None:
    def trial(blobs: S3BlobStore) -> None:
        world = World()
        world.blobs = blobs  # type: ignore[assignment]  # a real one in its place
        settlement = world.worker(keys=KEYS)(_task(), StopSignal())
        assert settlement == Ack()
        assert not blobs.list(Bucket(MODELS), KEYS.job(TASK_ID, "lease.json").key)
        assert len(blobs.list(Bucket(MODELS), KEYS.weights(7).key)) == 1

    _under_the_policy(trial)


def test_a_job_can_be_cancelled_under_the_policy() -> None:
    def trial(blobs: S3BlobStore) -> None:
        store = World().store(blobs=blobs, keys=KEYS)
        assert not store.cancellation_requested(TASK_ID)
        store.request_cancellation(TASK_ID)
        assert store.cancellation_requested(TASK_ID)

    _under_the_policy(trial)


def test_the_check_passes_under_the_policy() -> None:
    def trial(blobs: S3BlobStore) -> None:
        probe = "jobs/check/worker"
        assert "can be read" in check_bucket(blobs, Location(IMAGES, probe), write=False)
        assert "written" in check_bucket(blobs, Location(MODELS, probe), write=True)

    _under_the_policy(trial)


@pytest.mark.parametrize("at", [KEYS.weights(7), KEYS.checkpoint(TASK_ID, 1, 1)])
def test_multipart_uploads_work_under_the_policy(at: Location) -> None:
    _under_the_policy(lambda blobs: blobs.put(at, bytes(7 * MIB)))


def test_conditional_writes_work_under_the_policy() -> None:
    def trial(blobs: S3BlobStore) -> None:
        at = KEYS.job(TASK_ID, "lease.json")
        etag = blobs.put(at, b"first", condition=IfAbsent())
        blobs.put(at, b"second", condition=IfMatch(etag))
        blobs.delete(at)

    _under_the_policy(trial)


@pytest.mark.parametrize("bucket", [IMAGES, MODELS])
def test_a_missing_object_is_distinguished_from_a_denied_one(bucket: str) -> None:
    def trial(blobs: S3BlobStore) -> None:
        with pytest.raises(BlobMissing):
            blobs.get(Location(bucket, "jobs/missing"))

    _under_the_policy(trial)


@pytest.mark.parametrize(
    "act",
    [
        lambda blobs: blobs.put(Location(IMAGES, "7/00.jpg"), b"another"),
        lambda blobs: blobs.delete(Location(IMAGES, "7/00.jpg")),
        lambda blobs: blobs.put(Location(MODELS, "elsewhere/x"), b"x"),
        lambda blobs: blobs.delete(KEYS.weights(7)),
    ],
    ids=["overwrite an image", "delete an image", "write elsewhere", "delete a style"],
)
def test_everything_else_is_denied(act: Callable[[S3BlobStore], object]) -> None:
    def trial(blobs: S3BlobStore) -> None:
        with pytest.raises(BlobDenied):
            act(blobs)

    _under_the_policy(trial)


def test_a_policy_without_a_needed_action_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = read_json("iam-policy.json")
    policy["Statement"] = [s for s in policy["Statement"] if s["Sid"] != "DeliverStyles"]
    monkeypatch.setitem(globals(), "read_json", lambda _name: policy)
    with pytest.raises(BlobDenied):
        _under_the_policy(lambda blobs: blobs.put(KEYS.weights(7), b"weights"))


def test_the_lifecycle_rule_aborts_incomplete_uploads_and_expires_nothing() -> None:
    rules = read_json("s3-lifecycle.json")
    with mock_aws():
        s3 = boto3.client("s3", region_name=REGION)
        s3.create_bucket(Bucket=MODELS)
        s3.put_bucket_lifecycle_configuration(Bucket=MODELS, LifecycleConfiguration=rules)
        (kept,) = s3.get_bucket_lifecycle_configuration(Bucket=MODELS)["Rules"]
    assert kept["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] >= 1
    assert kept["Status"] == "Enabled"
    assert "Expiration" not in kept


def test_log_lines_may_only_be_written_to_the_documented_group() -> None:
    (statement,) = [
        one for one in read_json("iam-policy.json")["Statement"] if one["Sid"] == "SendLogLines"
    ]
    assert set(statement["Action"]) == {"logs:CreateLogStream", "logs:PutLogEvents"}
    assert statement["Resource"].startswith("arn:aws:logs:*:*:log-group:style-trainer:")
