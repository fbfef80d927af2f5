"""The worker on its production adapters: a real broker, an S3 API over HTTP, a real backend."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.lora_files.files import hashed, read_lora
from adapters.lora_files.kohya_format import to_kohya
from adapters.lora_files.lora_formats import UNET, LayerWeights
from assets.drawing import draw_style_set
from tests.services.backend_process import BackendProcess
from tests.services.commands import a_worker, run
from tests.services.queues import own_options, raw_channel
from tests.services.s3 import ACCESS_KEY, REGION, SECRET_KEY, Server, running_s3
from tests.services.waiting import eventually

pytestmark = pytest.mark.integration

DELAYS = (0.3, 1.5)
SMALL: dict[str, Any] = {
    "batch_size": 5,
    "resolution": 64,
    "sample_prompts": ["a red circle"],
    "validation_epochs": 0,
}
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1"
TO_Q, TO_K = f"{ATTENTION}.to_q", f"{ATTENTION}.to_k"


@dataclass(frozen=True)
class Platform:
    """The services that a worker uses, and functions that start one with them."""

    queue: str
    s3: Server
    backend: BackendProcess
    folder: Path

    def settings(self) -> dict[str, Any]:
        return {
            "RABBITMQ_HOST": "127.0.0.1",
            "RABBITMQ_QUEUE": self.queue,
            "RETRY_DELAYS": ",".join(map(str, DELAYS)),
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_S3_REGION_NAME": REGION,
            "S3_ENDPOINT_URL": self.s3.url,
            "AWS_STORAGE_BUCKET_NAME": "images",
            "MODEL_BUCKET_NAME": "models",
            "BACKEND_API_URL": self.backend.url,
            "INTERNAL_API_TOKEN": self.backend.token,
            "PROGRESS_EVERY": "0.05",
            "CANCEL_POLL": "0.2",
            "CHECKPOINT_EVERY": "2",
            "MIN_IMAGES": "5",
            "LOG_LEVEL": "DEBUG",
        }

    def run(self, name: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return run(name, *arguments, cwd=self.folder, **{**self.settings(), **settings})

    @property
    def log(self) -> Path:
        """Log file of the worker process."""
        return self.folder / "worker.log"

    @contextmanager
    def working(self, **settings: str) -> Iterator[subprocess.Popen[str]]:
        """A worker in a process of its own, killed on leaving the context."""
        named = {**self.settings(), **settings}
        with self.log.open("w") as log, a_worker(cwd=self.folder, stderr=log, **named) as worker:
            yield worker

    def publish(self, body: bytes) -> None:
        with raw_channel() as channel:
            channel.queue_declare(self.queue, durable=True)
            channel.basic_publish("", self.queue, body)

    def upload(self, images: Sequence[Path]) -> None:
        """Upload images to the bucket that ``order`` reads."""
        for path in images:
            self.s3.client().upload_file(str(path), "images", path.name)

    def order(self, style_id: int, **parameters: Any) -> str:
        """Publish a task with all uploaded images; returns its id."""
        stored = self.s3.client().list_objects_v2(Bucket="images")["Contents"]
        task = {
            "task_id": str(uuid.uuid4()),
            "type": "model_training",
            "data": {
                "style_id": style_id,
                "images": [f"s3://images/{blob['Key']}" for blob in stored],
                "parameters": {**SMALL, **parameters},
            },
        }
        self.publish(json.dumps(task).encode())
        return str(task["task_id"])

    def keys(self) -> set[str]:
        client = self.s3.client()
        found = client.list_objects_v2(Bucket="models").get("Contents", [])
        return {blob["Key"] for blob in found}


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with (
        own_options(DELAYS) as options,
        running_s3("images", "models") as s3,
        BackendProcess() as backend,
    ):
        yield Platform(options.queue, s3, backend, tmp_path)


def submitted(platform: Platform, style_id: int, *options: str) -> str:
    done = platform.run(
        *("submit", "images", "--style-id", str(style_id), "--epochs", "3"),
        *("--resolution", "64", "--batch-size", "5", "--sample-prompt", "a red circle"),
        *options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_one_worker_handles_valid_cancelled_and_invalid_messages(
    platform: Platform,
) -> None:
    draw_style_set(platform.folder / "images", count=5, seed=3)
    first = platform.folder / "first.safetensors"
    lora = LayerWeights(torch.randn(8, 32), torch.randn(32, 8), 8.0)
    first.write_bytes(hashed(to_kohya({(UNET, TO_Q): lora}), {}))
    platform.s3.client().upload_file(str(first), "models", first.name)
    good = submitted(platform, 41, "--network-weights", "s3://models/first.safetensors")
    elsewhere = ("--network-weights", "s3://secrets/first.safetensors")
    rejected = platform.run("submit", "images", *elsewhere)
    assert "in one of these buckets: s3://images, s3://models" in rejected.stderr
    cancelled = submitted(platform, 42)
    assert "requested" in platform.run("submit", "--cancel", cancelled).stdout
    broken = {"type": "model_training", "task_id": str(uuid.uuid4()), "data": {"style_id": 43}}
    platform.publish(json.dumps(broken).encode())
    platform.publish(json.dumps(broken).encode())

    worked = platform.run("worker", "--once")
    assert worked.returncode == 0, worked.stderr

    outcomes = {call.style_id: call for call in platform.backend.final}
    assert {style: call.kind for style, call in outcomes.items()} == {
        41: "complete",
        42: "failed",
        43: "failed",
    }
    assert len(platform.backend.final) == 3, "each is notified once"
    assert outcomes[41].body["model_path"] == "s3://models/models/style_41.safetensors"
    metric = outcomes[41].body["training_metric"]
    assert (metric["epochs"], metric["steps"]) == (3, 6), "two batches, by shape"
    assert outcomes[42].body["error_code"] == "CANCELLED"
    assert outcomes[43].body["error_code"] == "INVALID_TASK"
    assert "on our side" in outcomes[43].body["error_message"], "artists read this"
    kinds = [call.kind for call in platform.backend.calls if call.style_id == 41]
    assert "progress" in kinds
    assert kinds[-1] == "complete"

    keys = platform.keys()
    style = platform.folder / "style_41.safetensors"
    platform.s3.client().download_file("models", "models/style_41.safetensors", str(style))
    weights, metadata = read_lora(style)
    assert metadata["ss_network_weights"] == "first.safetensors"
    trained = weights[UNET, TO_Q]
    assert (trained.up - lora.up).abs().max() < 0.1, "trained on from there"
    assert (weights[UNET, TO_K].up != 0).any()
    assert not [key for key in keys if key.endswith("lease.json")]
    kept = [key for key in keys if key.startswith(f"jobs/{good}/checkpoints/")]
    assert len(kept) == 1, "old checkpoints are cleaned up"

    letters = json.loads(platform.run("submit", "--dead", "--json").stdout)
    assert [letter["task_id"] for letter in letters] == [broken["task_id"]] * 2
    assert letters[0]["details"]["field"] == "data.images"
    assert letters[0]["details"]["remedy"]
    assert letters[0]["details"]["worker"]

    printed = worked.stdout + worked.stderr
    assert SECRET_KEY not in printed
    assert platform.backend.token not in printed


def test_jobs_batched_on_one_worker_resume_alone_on_another(
    platform: Platform,
) -> None:
    platform.upload(draw_style_set(platform.folder / "images", count=5, seed=3))
    tasks = [platform.order(style, epochs=12) for style in (51, 52, 53)]
    platform.order(54, epochs=2, rank=2)
    begun = [f"jobs/{task}/checkpoints/" for task in tasks]
    settings = {"JOBS_TOGETHER": "3", "PREVIEW_SHARE": "0"}
    with platform.working(**settings) as together:

        def all_are_on_their_way() -> bool:
            assert together.poll() is None, platform.log.read_text()
            stored = platform.keys()
            return all(any(key.startswith(prefix) for key in stored) for prefix in begun)

        eventually(all_are_on_their_way, within=240)
        together.terminate()
        together.wait(timeout=60)
    assert together.returncode == 0, platform.log.read_text()
    assert "3 runs train together" in platform.log.read_text()
    assert platform.backend.final == []
    stored = platform.keys()
    assert not any(held(platform, key) for key in stored if key.endswith("lease.json"))

    alone = platform.run("worker", "--once", PREVIEW_SHARE="0")
    assert alone.returncode == 0, alone.stderr
    assert sorted(call.style_id or 0 for call in platform.backend.final) == [51, 52, 53, 54]
    assert {call.kind for call in platform.backend.final} == {"complete"}
    assert alone.stderr.count("resumes from epoch") == 3


def held(platform: Platform, key: str) -> bool:
    body = platform.s3.client().get_object(Bucket="models", Key=key)["Body"].read()
    return bool(json.loads(body)["owner"])


def test_the_check_covers_broker_buckets_and_backend(platform: Platform) -> None:
    good = platform.run("worker", "--check")
    assert good.returncode == 0, good.stdout + good.stderr
    assert all(line.startswith("ok    ") for line in good.stdout.splitlines()), good.stdout
    assert platform.keys() == set()
    assert platform.backend.final == []

    bad = platform.run(
        *("worker", "--check"),
        RABBITMQ_PORT="9",
        MODEL_BUCKET_NAME="no-such-bucket",
        INTERNAL_API_TOKEN="x" * 32,
    )
    assert bad.returncode == 1
    lines = [line for line in bad.stdout.splitlines() if line.startswith("FAILED")]
    assert [line.split()[1] for line in lines] == ["queue", "models", "backend"], bad.stdout
    assert "INTERNAL_API_TOKEN" in lines[2]
    assert SECRET_KEY not in bad.stdout + bad.stderr
    assert "retrying" not in bad.stderr, "a check does not retry"
