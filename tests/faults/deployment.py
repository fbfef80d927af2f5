"""The services of the fault campaign: broker, store, backend, and the tasks."""

from __future__ import annotations

import json
import random
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika
from pika.exceptions import AMQPError

from application.job_store import StorageKeys
from assets.drawing import draw_style_set
from domain.image import MIN_IMAGES
from domain.location import Bucket
from tests.adapters.images.files import (
    animated_webp,
    chunk,
    jpeg_of_scans,
    png,
    rgba_bomb,
)
from tests.faults.stores import IMAGES, MODELS, Store, a_store
from tests.services.backend_process import BackendProcess
from tests.services.broker import Broker
from tests.services.http_proxy import FaultyProxy, running_proxy
from tests.services.queues import raw_channel

QUEUE = "model_training"
FIRST_STYLE = 1001
"""Style numbers have four digits: a file's bytes depend on the number but not on its length, so
one reference serves all styles of a variant."""
BROKER_FLAGS = (
    "-rabbit channel_tick_interval 1000 -rabbit dead_letter_worker_publisher_confirm_timeout 1000"
)
"""Milliseconds until the broker checks acknowledgement timeouts (default: a minute), and until it
repeats an unconfirmed move from a retry queue to the main queue, for example because the main
queue had not started (default: three minutes)."""
SEEDS = (1, 2)
"""Variants of the task, each with its own reference."""
SEED_OF_ANOTHER_KIND = 3
"""A variant with another rank: it cannot share a pass with the others, and waits for a slot."""
PARAMETERS = {
    "epochs": 16,
    "batch_size": 2,
    "resolution": 64,
    "rank": 4,
    "sample_prompts": ["a red circle"],
}


@dataclass(frozen=True)
class Order:
    """One requested task."""

    task_id: str
    style_id: int
    seed: int
    body: bytes


@dataclass(frozen=True)
class Deployment:
    """Everything except the workers."""

    broker: Broker
    store: Store
    proxy: FaultyProxy
    """The proxy between the workers and the store."""
    backend: BackendProcess
    images: tuple[str, ...]
    hostile: tuple[str, ...]
    """URIs of images that exhaust memory or time, or cannot be decoded."""

    def consumer_timeout(self, seconds: float) -> None:
        """Set the acknowledgement timeout; it applies to channels opened afterwards."""
        milliseconds = round(seconds * 1000)
        self.broker.evaluate(f"application:set_env(rabbit, consumer_timeout, {milliseconds})")
        self.broker.close_connections()

    def publish(self, body: bytes) -> None:
        """Publish as the backend does, and retry until the broker confirms."""
        deadline = time.monotonic() + 60
        while True:
            try:
                with raw_channel(self.broker.port) as channel:
                    channel.confirm_delivery()
                    channel.queue_declare(QUEUE, durable=True)
                    properties = pika.BasicProperties(
                        delivery_mode=2, content_type="application/json"
                    )
                    channel.basic_publish("", QUEUE, body, properties)
                return
            except (AMQPError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def cancel(self, order: Order) -> None:
        """Cancel a task, as an operator does."""
        at = StorageKeys(Bucket(MODELS)).job(order.task_id, "cancel.json")
        self.store.put(at.key, b"{}")

    def dead_letters(self) -> list[bytes]:
        """The bodies of the dead letters, which stay in their queue."""
        bodies: list[bytes] = []
        with raw_channel(self.broker.port) as channel:
            while True:
                method, _, body = channel.basic_get(f"{QUEUE}.dead")
                if method is None or body is None:
                    return bodies
                bodies.append(body)

    def settings(self, together: int = 1) -> dict[str, str]:
        """A worker's settings, with short times so that much happens quickly.

        Args:
            together: maximum number of jobs that one worker trains at a time.
        """
        return {
            "JOBS_TOGETHER": str(together),
            "RABBITMQ_HOST": "127.0.0.1",
            "RABBITMQ_PORT": str(self.broker.port),
            "RABBITMQ_HEARTBEAT": "5",
            "RETRY_DELAYS": "0.5,1,2",
            **self.store.settings(self.proxy.url),
            "BACKEND_API_URL": self.backend.url,
            "INTERNAL_API_TOKEN": self.backend.token,
            "WEBHOOK_TIMEOUT": "2",
            "CHECKPOINT_EVERY": "3",
            "PROGRESS_EVERY": "0.5",
            "CANCEL_POLL": "0.5",
            "LEASE_SECONDS": "3",
            "SHUTDOWN_TIMEOUT": "4",
            "MAX_FAILURES": "1000",
            "LOG_LEVEL": "INFO",
        }

    def order(self, style_id: int, seed: int, rng: random.Random) -> Order:
        """A valid task as the backend publishes it."""
        task_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        return Order(task_id, style_id, seed, task_body(task_id, style_id, seed, self.images))

    def hostile_order(self, style_id: int, rng: random.Random) -> Order:
        """A task that fails: with the hostile images it has one image too few."""
        task_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        images = (*self.hostile, *self.images[: MIN_IMAGES - 1 - len(self.hostile)])
        return Order(task_id, style_id, 0, task_body(task_id, style_id, 0, images))


def hostile_files() -> dict[str, bytes]:
    """Small files that cost much memory or time, or that decoders do not understand."""
    return {
        "scans.jpg": jpeg_of_scans(3000),
        "frames.webp": animated_webp(4000),
        "bomb.png": rgba_bomb(10_000),
        "palette.png": png(
            (256, 256, 8, 3, 0, 0, 0), chunk(b"IDAT", zlib.compress(bytes(257 * 256)))
        ),
    }


def task_body(task_id: str, style_id: int, seed: int, images: tuple[str, ...]) -> bytes:
    """The message of one task."""
    message: dict[str, Any] = {
        "task_id": task_id,
        "type": "model_training",
        "data": {
            "style_id": style_id,
            "images": list(images),
            "tags": ["watercolour"],
            "parameters": parameters_of(seed),
        },
        "callback_url": "http://127.0.0.1/api/webhooks/training/complete",
        "created_at": "2026-01-20T10:00:00.000Z",
    }
    return json.dumps(message).encode()


def parameters_of(seed: int) -> dict[str, Any]:
    """A variant's parameters, as in a task message."""
    rank = {"rank": 2} if seed == SEED_OF_ANOTHER_KIND else {}
    return {**PARAMETERS, **rank, "seed": seed}


def garbage(rng: random.Random, style_id: int) -> bytes:
    """A message that is not a task; some name a style."""
    good = json.loads(
        task_body(str(uuid.UUID(int=rng.getrandbits(128))), style_id, 0, ("s3://a/b",))
    )
    match rng.randrange(5):
        case 0:
            return rng.randbytes(rng.randrange(1, 2000))
        case 1:
            return json.dumps({**good, "type": "image_generation"}).encode()
        case 2:
            return json.dumps({**good, "task_id": f"no uuid {rng.random()}"}).encode()
        case 3:
            good["data"]["parameters"]["epochs"] = -rng.randrange(1000)
        case 4:
            good["data"]["images"] = [f"file:///etc/passwd#{rng.random()}"]
    return json.dumps(good).encode()


@contextmanager
def a_deployment(broker: Broker, folder: Path, store_kind: str = "s3") -> Iterator[Deployment]:
    """The broker, emptied, and the other services, started.

    Args:
        folder: keeps the images.
        store_kind: ``s3`` or ``gcs``.
    """
    broker.delete_queues()
    paths = draw_style_set(folder / "images", count=10, seed=5, size=320)
    with (
        a_store(store_kind) as store,
        running_proxy(store.url) as proxy,
        BackendProcess() as backend,
    ):
        for path in (*paths, *(path.with_suffix(".txt") for path in paths)):
            store.upload(path)
        (folder / "hostile").mkdir(exist_ok=True)
        bad = []
        for name, data in hostile_files().items():
            bad.append(folder / "hostile" / name)
            bad[-1].write_bytes(data)
            store.upload(bad[-1])
        images, hostile = (
            tuple(f"{store.scheme}://{IMAGES}/{path.name}" for path in some)
            for some in (paths, bad)
        )
        yield Deployment(broker, store, proxy, backend, images, hostile)
