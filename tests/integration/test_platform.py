"""Today's platform end to end: it publishes gs:// images, gets the style, and draws with it.

The worker knows the platform's own names for settings, and little else.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from diffusers import StableDiffusionPipeline

from assets.drawing import draw_style_set
from entrypoints.models import SMALL_BASE
from tests.services.backend_faults import Fault
from tests.services.backend_process import BackendProcess
from tests.services.commands import a_worker, run
from tests.services.gcs import Emulator, running_gcs
from tests.services.inference import InferenceServer
from tests.services.platform import task_message, upload_images
from tests.services.queues import own_options, raw_channel
from tests.services.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

MEDIA, STATE = "stylelicense-media", "style-trainer-state"
PROMPT = "a red circle"
SMALL = {
    "resolution": 64,
    "epochs": 5,
    "learning_rate": 0.01,
    "sample_prompts": [PROMPT],
}


@dataclass(frozen=True)
class Platform:
    """The platform's services around a worker."""

    queue: str
    emulator: Emulator
    backend: BackendProcess
    folder: Path

    def settings(self) -> dict[str, Any]:
        return {
            "RABBITMQ_HOST": "127.0.0.1",
            "RABBITMQ_USER": "guest",
            "RABBITMQ_PASSWORD": "guest",
            "RABBITMQ_TRAINING_QUEUE": self.queue,
            "BACKEND_URL": self.backend.url,
            "INTERNAL_API_TOKEN": self.backend.token,
            "GCS_BUCKET_NAME": MEDIA,
            "GCS_PROJECT_ID": "stylelicense",
            "CHECKPOINT_INTERVAL": "10",
            "MIN_IMAGES": "3",
            "STORAGE_EMULATOR_HOST": self.emulator.url,
        }

    def publish(self, style_id: int, **parameters: Any) -> str:
        """Publish a task as the backend does; returns the task's id."""
        drawn = draw_style_set(self.folder / str(style_id), count=3, seed=style_id)
        images = upload_images(self.emulator, MEDIA, style_id, drawn)
        task_id = str(uuid.uuid4())
        body = task_message(style_id, images, task_id=task_id, **{**SMALL, **parameters})
        with raw_channel() as channel:
            channel.queue_declare(self.queue, durable=True)
            channel.basic_publish("", self.queue, body)
        return task_id

    def work(self, *arguments: str, **settings: str) -> str:
        """Run the worker until it ends. Returns its output."""
        done = run(
            "worker", *arguments, cwd=self.folder, timeout=400, **{**self.settings(), **settings}
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def names(self, bucket: str) -> list[str]:
        return [blob.name for blob in self.emulator.client().list_blobs(bucket)]


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with own_options() as options, running_gcs(MEDIA, STATE) as gcs, BackendProcess() as backend:
        yield Platform(options.queue, gcs, backend, tmp_path)


def test_a_published_task_is_trained_announced_loaded_and_drawn(
    platform: Platform,
) -> None:
    checked = platform.work("--check", STATE_BUCKET_NAME=STATE)
    assert f"gs://{MEDIA}" in checked
    assert f"gs://{STATE}" in checked
    tasks = {style: platform.publish(style) for style in (1, 19)}
    platform.work("--once", STATE_BUCKET_NAME=STATE)

    paths = {call.style_id: call.body["model_path"] for call in platform.backend.final}
    assert paths == {
        style: f"gs://{MEDIA}/models/style-{style}/{task}/adapter_model.safetensors"
        for style, task in tasks.items()
    }
    assert len(platform.backend.final) == 2
    style = requests.get(f"{platform.backend.url}/api/styles/1/", timeout=10).json()
    assert style["training_metric"]["task_id"] == tasks[1]

    pipeline = StableDiffusionPipeline.from_pretrained(
        SMALL_BASE, safety_checker=None, torch_dtype=torch.float16
    )
    pipeline.set_progress_bar_config(disable=True)
    server = InferenceServer(pipeline, platform.emulator, MEDIA)
    drawn = {style: server.draw(path, PROMPT, size=64) for style, path in paths.items()}
    again = server.draw(paths[1], PROMPT, size=64)
    base = server.draw(f"gs://{MEDIA}/models/nothing", PROMPT, size=64)
    assert np.array_equal(again, drawn[1]), "a style drawn in between leaves nothing behind"
    assert np.abs(drawn[1] - base).mean() > 0.01
    assert np.abs(drawn[1] - drawn[19]).mean() > 0.005

    downloaded = platform.folder / "downloaded"
    names = server.download(paths[1], downloaded)
    assert sorted(names) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "style_1.safetensors",
    ]
    pipeline.load_lora_weights(downloaded / "style_1.safetensors")
    as_file = pipeline(
        PROMPT,
        height=64,
        width=64,
        num_inference_steps=4,
        generator=server.generator(),
        output_type="np",
    ).images[0]
    assert np.allclose(as_file, drawn[1], atol=0.02)

    assert not [name for name in platform.names(MEDIA) if name.startswith("jobs/")]
    assert {name.split("/")[1] for name in platform.names(STATE)} == set(tasks.values())


def test_a_lora_the_reader_cannot_load_is_rejected_before_training(
    platform: Platform,
) -> None:
    platform.publish(7, train_text_encoder=True)
    platform.work("--once")
    (call,) = platform.backend.final
    assert (call.kind, call.body["error_code"]) == ("failed", "INVALID_TASK")
    assert "cannot load such a style" in call.body["error_message"]


def test_a_worker_killed_between_the_backends_commit_and_response_announces_once(
    platform: Platform,
) -> None:
    platform.publish(7)
    platform.backend.misbehave(Fault("hang_after", seconds=60), kinds=("complete",))
    short: dict[str, Any] = {"WEBHOOK_TIMEOUT": "5", "LEASE_SECONDS": "8", "PREVIEW_SHARE": "0"}
    with a_worker(
        "--once", cwd=platform.folder, stderr=subprocess.PIPE, **platform.settings(), **short
    ) as worker:
        eventually(lambda: platform.backend.final, within=120, running=worker)
        worker.kill()
        worker.wait()

    with a_worker(
        cwd=platform.folder, stderr=subprocess.PIPE, **platform.settings(), **short
    ) as healer:
        eventually(
            lambda: "lease.json" not in str(platform.names(MEDIA)), within=240, running=healer
        )
    assert [call.kind for call in platform.backend.final] == ["complete"]
