"""What the platform of December 2025 does before a job: store images and publish a task."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.services.gcs import Emulator

API_BASE_URL = "http://backend:8000"


def upload_images(
    emulator: Emulator, bucket: str, style_id: int, images: Sequence[Path]
) -> list[str]:
    """Store an artist's images and their captions, if any. Returns the images' URIs."""
    store = emulator.client().bucket(bucket)
    addresses = []
    for number, image in enumerate(images):
        name = f"training/{style_id}/image_{number}"
        store.blob(f"{name}{image.suffix}").upload_from_filename(str(image))
        caption = image.with_suffix(".txt")
        if caption.exists():
            store.blob(f"{name}.txt").upload_from_filename(str(caption))
        addresses.append(f"gs://{bucket}/{name}{image.suffix}")
    return addresses


def task_message(
    style_id: int, images: Sequence[str], *, task_id: str | None = None, **parameters: object
) -> bytes:
    """A task as the platform publishes it; its own parameters are three, all others are ours."""
    message = {
        "task_id": task_id or str(uuid.uuid4()),
        "type": "model_training",
        "data": {
            "style_id": style_id,
            "images": list(images),
            "parameters": {"epochs": 200, "learning_rate": 0.0001, "batch_size": 1, **parameters},
        },
        "webhook_url": f"{API_BASE_URL}/api/webhooks/training/{style_id}/status",
    }
    return json.dumps(message).encode()
