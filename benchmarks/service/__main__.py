"""Tasks per second without training: `python -m benchmarks.service`.

Measures what queue, journal, lease, store and webhooks cost: real worker processes, whose trainer
takes no time, empty a queue of RabbitMQ. A plain pika consumer empties a queue of the same
messages in the same run. Prints the speeds, and the calls per job to the store and the backend by
kind. Writes `benchmarks/results/service.json`; `python -m benchmarks.pages` puts the tables into
the documentation. If only some rows are measured, the file keeps the others of this machine.

Needs RabbitMQ on this machine, with the user guest. Store `folders`: folders on this disk, each
write synced to it. Store `s3`: moto, an S3 server in Python that serves one request at a time, so
its rows show the server's speed more than the worker's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pika

from adapters.rabbitmq.topology import Topology
from benchmarks.service.rates import shares, together
from benchmarks.service.tables import service_tables
from tests.services.backend_process import BackendProcess
from tests.services.commands import environment
from tests.services.queues import PORT, raw_channel
from tests.services.s3 import ACCESS_KEY, REGION, SECRET_KEY, running_s3

IMAGES, MODELS = "stylelicense-training-data", "stylelicense-models"
NAMES = [f"training/1/image_{number}" for number in range(10)]
EPOCHS = 20
"""Two checkpoints with the default of one every ten epochs."""
DELAYS = (1.0, 60.0)
MAX_SECONDS = 300
"""Time limit of a row's workers, and of its plain consumers."""
MEASURED_OF_BARE = 10
"""Messages of the plain consumer for each task of a worker, because it is much faster."""


@dataclass(frozen=True)
class Place:
    """Broker, store and backend."""

    port: int
    backend: BackendProcess
    folder: Path
    s3_url: str

    def settings(self, store: str, queue: str, number: int) -> dict[str, str]:
        """A worker's settings."""
        stores = {
            "folders": {"STORAGE_DIR": str(self.folder)},
            "s3": {
                "S3_ENDPOINT_URL": self.s3_url,
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "AWS_S3_REGION_NAME": REGION,
            },
        }
        return {
            "RABBITMQ_HOST": "127.0.0.1",
            "RABBITMQ_PORT": str(self.port),
            "RABBITMQ_QUEUE": queue,
            "RETRY_DELAYS": ",".join(f"{delay:g}" for delay in DELAYS),
            "AWS_STORAGE_BUCKET_NAME": IMAGES,
            "MODEL_BUCKET_NAME": MODELS,
            "BACKEND_API_URL": self.backend.url,
            "INTERNAL_API_TOKEN": self.backend.token,
            "WORKER_NAME": f"worker-{number}",
            **stores[store],
        }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description="Measure the service without the training.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--backlogs", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument(
        "--tasks",
        type=int,
        default=200,
        help="processed of a backlog; the rest stays in the queue",
    )
    parser.add_argument(
        "--stores", nargs="+", default=["folders", "s3"], choices=["folders", "s3"]
    )
    parser.add_argument("--port", type=int, default=PORT, help="of RabbitMQ on this machine")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/service.json"))
    options = parser.parse_args()
    results = _facts()
    with (
        tempfile.TemporaryDirectory() as scratch,
        running_s3(IMAGES, MODELS) as server,
        BackendProcess() as backend,
    ):
        place = Place(options.port, backend, Path(scratch), server.url)
        images = _images()
        for name, data in images.items():
            server.client().put_object(Bucket=IMAGES, Key=name, Body=data)
            file = place.folder / IMAGES / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        rows = _kept_rows(options.json, results)
        for store in options.stores:
            for backlog in options.backlogs:
                for workers in options.workers:
                    row = _measure(place, store, backlog, workers, min(backlog, options.tasks))
                    results |= {"calls": row.pop("calls")}
                    rows[_key(row)] = row
                    results["rows"] = list(rows.values())
                    print(json.dumps(row), flush=True)
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(service_tables(results))


def _kept_rows(file: Path, facts: dict[str, Any]) -> dict[Hashable, dict[str, Any]]:
    """The rows of an earlier run on this machine, with the same versions."""
    if not file.exists():
        return {}
    earlier = json.loads(file.read_text("utf-8"))
    if any(earlier[name] != facts[name] for name in ("processor", "cores", "versions")):
        return {}
    return {_key(row): row for row in earlier["rows"]}


def _key(row: dict[str, Any]) -> Hashable:
    return row["store"], row["backlog"], row["workers"]


def _measure(place: Place, store: str, backlog: int, workers: int, tasks: int) -> dict[str, Any]:
    """Speeds of the plain consumer and of the workers, and the workers' calls per job."""
    with _filled_queue(place.port, backlog) as queue:
        bare_shares = shares(min(backlog, tasks * MEASURED_OF_BARE), workers)
        command = [
            sys.executable,
            "-m",
            "benchmarks.service.bare_consumer",
            str(place.port),
            queue,
        ]
        bare = _run([([*command, str(share)], dict(os.environ)) for share in bare_shares])
    place.backend.forget()
    with _filled_queue(place.port, backlog) as queue:
        command = [sys.executable, "-m", "benchmarks.service.worker"]
        workers_results = _run(
            [
                ([*command, str(share)], environment(**place.settings(store, queue, number)))
                for number, share in enumerate(shares(tasks, workers))
            ]
        )
    calls: Counter[str] = sum((Counter(each["calls"]) for each in workers_results), Counter())
    webhooks = Counter(f"webhook {call.kind}" for call in place.backend.calls)
    return {
        "store": store,
        "backlog": backlog,
        "workers": workers,
        "tasks": tasks,
        "tasks_per_s": round(together([each["ends"] for each in workers_results]), 2),
        "bare_messages_per_s": round(together([each["ends"] for each in bare])),
        "calls": {name: round(count / tasks, 2) for name, count in (calls + webhooks).items()},
    }


def _run(commands: list[tuple[list[str], dict[str, str]]]) -> list[dict[str, Any]]:
    """Run the commands, all from the same moment, and return the JSON that each printed.

    Raises:
        RuntimeError: one failed; with the end of its output.
        subprocess.TimeoutExpired: one took longer than ``MAX_SECONDS``.
    """
    processes = [
        subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, env in commands
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it is ready
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        results = []
        for process in processes:
            output, errors = process.communicate(timeout=MAX_SECONDS)
            if process.returncode:
                ended = f"{process.args} ended with {process.returncode}"
                raise RuntimeError(f"{ended}: {errors[-2000:]}")
            results.append(json.loads(output.splitlines()[-1]))
        return results
    finally:
        for process in processes:
            process.kill()  # does nothing if it has ended


@contextmanager
def _filled_queue(port: int, backlog: int) -> Iterator[str]:
    """A queue of ``backlog`` tasks. Deletes it, its retry and dead-letter queues at the end."""
    queue = f"benchmark.{uuid.uuid4().hex[:12]}"
    with raw_channel(port) as channel:
        channel.queue_declare(queue, durable=True)
        properties = pika.BasicProperties(delivery_mode=2, content_type="application/json")
        for number in range(backlog):
            channel.basic_publish("", queue, _body(number), properties)
    try:
        yield queue
    finally:
        with raw_channel(port) as channel:
            for name in Topology(queue, DELAYS).names:
                channel.queue_delete(name)


def _body(number: int) -> bytes:
    """A task as the backend publishes it."""
    task = {
        "task_id": str(uuid.uuid4()),
        "type": "model_training",
        "data": {
            "style_id": 1 + number,
            "images": [f"s3://{IMAGES}/{name}.jpg" for name in NAMES],
            "parameters": {"epochs": EPOCHS, "learning_rate": 0.0001, "batch_size": 1},
        },
    }
    return json.dumps(task).encode()


def _images() -> dict[str, bytes]:
    """Files that take the place of images, with captions."""
    images = {f"{name}.jpg": name.encode() * 4096 for name in NAMES}
    return images | {f"{name}.txt": b"watercolour, a house" for name in NAMES}


def _facts() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), "pika": pika.__version__},
        "images": len(NAMES),
        "epochs": EPOCHS,
    }


if __name__ == "__main__":
    main()
