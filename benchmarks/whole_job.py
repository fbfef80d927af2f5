"""Time from a task to its finished style: `python -m benchmarks.whole_job`.

Publishes a task to RabbitMQ and starts a worker, waits for its completion call to the backend, and
publishes a second task to the same worker. Prints the seconds from publishing to the call for the
cold and the warm worker, in the parts that the worker's status page shows. Writes
`benchmarks/results/whole-job-<device>.json`; `python -m benchmarks.pages` puts the table into the
documentation. Needs RabbitMQ on this machine, with the user guest.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from adapters.rabbitmq.topology import Topology
from benchmarks.images import drawn_images
from benchmarks.whole_job_tables import whole_job_table
from tests.services.backend_process import BackendProcess
from tests.services.commands import environment
from tests.services.ports import free_ports
from tests.services.queues import PORT, publish_as_the_backend, raw_channel

IMAGES, MODELS = "stylelicense-training-data", "stylelicense-models"
DELAYS = (60.0,)
POLL_SECONDS = 0.1


def main() -> None:
    """Measure, print and write the results."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as scratch, BackendProcess() as backend:
        row = _measure(options, Path(scratch), backend)
    results = {**_facts(options), **row}
    target = options.json or Path("benchmarks/results") / f"whole-job-{results['slug']}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=1) + "\n")
    print(whole_job_table(results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time whole jobs of a cold and a warm worker.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full-size", action="store_true", help="SD 1.5's shapes, random weights")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--port", type=int, default=PORT, help="of RabbitMQ on this machine")
    parser.add_argument("--json", type=Path)
    return parser


def _measure(
    options: argparse.Namespace, scratch: Path, backend: BackendProcess
) -> dict[str, dict[str, float]]:
    """Seconds of each part for the cold and the warm worker."""
    folder = scratch / IMAGES / "training" / "1"
    drawn_images(folder, options.images)
    names = [path.name for path in sorted(folder.iterdir()) if path.suffix != ".txt"]
    queue = f"benchmark.{uuid.uuid4().hex[:12]}"
    (status_port,) = free_ports(1)
    settings = {
        "RABBITMQ_HOST": "127.0.0.1",
        "RABBITMQ_PORT": str(options.port),
        "RABBITMQ_QUEUE": queue,
        "RETRY_DELAYS": ",".join(f"{delay:g}" for delay in DELAYS),
        "STORAGE_DIR": str(scratch),
        "AWS_STORAGE_BUCKET_NAME": IMAGES,
        "MODEL_BUCKET_NAME": MODELS,
        "BACKEND_API_URL": backend.url,
        "INTERNAL_API_TOKEN": backend.token,
        "DEVICE": options.device,
        "STATUS_PORT": str(status_port),
    }
    if options.full_size:
        settings["BASE_MODEL"] = str(_full_size(scratch / "base"))
    worker = None
    try:
        parts = {}
        for style_id, name in enumerate(("cold", "warm"), start=1):
            task_id = str(uuid.uuid4())
            published = _publish(options, queue, task_id, style_id, names)
            worker = worker or subprocess.Popen(
                [sys.executable, "-m", "entrypoints.worker"], env=environment(**settings)
            )
            parts[name] = _wait(backend, worker, style_id, published, status_port)
            lease = scratch / MODELS / "jobs" / task_id / "lease.json"
            while lease.exists():  # the worker writes the report after the call
                time.sleep(POLL_SECONDS)
        return parts
    finally:
        if worker is not None:
            worker.send_signal(signal.SIGTERM)
            worker.wait()
        with raw_channel(options.port) as channel:
            for each in Topology(queue, DELAYS).names:
                channel.queue_delete(each)


def _full_size(folder: Path) -> Path:
    from benchmarks.full_size import full_size_base, save_base

    save_base(full_size_base("cpu"), folder)
    return folder


def _publish(
    options: argparse.Namespace, queue: str, task_id: str, style_id: int, names: list[str]
) -> datetime:
    """Publish a task, and return when."""
    published = datetime.now(UTC)
    task = {
        "task_id": task_id,
        "type": "model_training",
        "created_at": published.isoformat(),
        "data": {
            "style_id": style_id,
            "images": [f"s3://{IMAGES}/training/1/{name}" for name in names],
            "parameters": {"epochs": options.epochs, "learning_rate": 0.0001, "batch_size": 1},
        },
    }
    with raw_channel(options.port) as channel:
        publish_as_the_backend(channel, queue, json.dumps(task).encode())
    return published


def _wait(
    backend: BackendProcess,
    worker: subprocess.Popen[bytes],
    style_id: int,
    published: datetime,
    status_port: int,
) -> dict[str, float]:
    """Wait for the outcome webhook, and read the parts from the worker's status.

    Raises:
        RuntimeError: the worker ended, or the job failed.
    """
    while not (calls := [call for call in backend.final if call.style_id == style_id]):
        if worker.poll() is not None:
            raise RuntimeError(f"the worker ended with {worker.returncode}")
        time.sleep(POLL_SECONDS)
    if calls[0].kind != "complete":
        raise RuntimeError(f"the job failed: {calls[0].body}")
    parts: dict[str, float] = {}
    while "call" not in parts:  # shown once the response to the call is recorded
        time.sleep(POLL_SECONDS)
        status = requests.get(f"http://127.0.0.1:{status_port}/api/status", timeout=10).json()
        parts = {
            part["name"]: part["seconds"]
            for job in status["recent"]
            if job["style_id"] == style_id
            for part in job["parts"]
        }
    total = calls[0].at - published.timestamp()
    return {name: round(seconds, 2) for name, seconds in {**parts, "total": total}.items()}


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from benchmarks.gpu.facts import slug

    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "device": name,
        "slug": slug(name),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1),
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "base": "SD 1.5's shapes, random weights" if options.full_size else "the small base",
        "images": options.images,
        "epochs": options.epochs,
    }


if __name__ == "__main__":
    main()
