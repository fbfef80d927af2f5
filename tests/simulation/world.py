"""The servers that outlive workers, and the record of all events."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters.memory import MemoryBlobStore, MemoryQueue
from application.fenced_blob import read_json
from application.job_store import StorageKeys
from application.journal import decode_record
from application.ports import BlobMissing, BlobUnavailable, NotifierUnavailable, QueueUnavailable
from application.worker_config import WorkerConfig
from domain.events import Event
from domain.job import TrainingJob
from domain.location import Bucket, Location
from domain.parameters import RequestedParameters
from domain.task import InvalidTask, TrainingTask
from tests.simulation.clock import VirtualClock
from tests.simulation.network import Network, Server
from tests.simulation.timeline import Process, Timeline

KEYS = StorageKeys(Bucket("models"))
CONFIG = WorkerConfig(fetch_concurrency=1, max_failures=1000)
"""The defaults, but with one fetch thread and without a limit for crashes."""
IMAGES, EPOCHS, BATCH = 10, 25, 4
STEPS = EPOCHS * -(-IMAGES // BATCH)
DIVERGING_STYLE = 4
"""A style whose training diverges."""


@dataclass
class Call:
    """One call to the backend. Times are virtual, in seconds."""

    kind: str
    style_id: int
    task_id: str | None
    caller: Process
    made_at: float
    accepted_at: float | None = None
    responded_at: float | None = None
    """When the caller got the response."""


@dataclass
class World:
    """The servers, and a record of all events."""

    timeline: Timeline
    network: Network
    tasks: Mapping[bytes, TrainingTask]
    """By message."""
    blobs: MemoryBlobStore
    queue: MemoryQueue
    store: Server = field(default_factory=lambda: Server(20.0, BlobUnavailable))
    backend: Server = field(default_factory=lambda: Server(30.0, NotifierUnavailable))
    broker: Server = field(default_factory=lambda: Server(20.0, QueueUnavailable))
    calls: list[Call] = field(default_factory=list)
    events: list[tuple[float, Process, Event]] = field(default_factory=list)
    """Time, machine and event."""
    records: list[tuple[float, Process, TrainingJob]] = field(default_factory=list)
    """Jobs written to journals: time, machine and job."""
    steps: int = 0
    """Total over all machines."""

    def parse(self, body: bytes) -> TrainingTask:
        """The task that the body stands for."""
        if body in self.tasks:
            return self.tasks[body]
        error = InvalidTask("data.images", "missing", "give 10 to 100")
        error.style_id = style_of(body)
        raise error

    def job(self, task_id: str) -> TrainingJob | None:
        """The recorded job."""
        return read_json(self.blobs, KEYS.job(task_id, "journal.json"), decode_record)

    def cancel(self, task_id: str) -> None:
        """Cancel a task, as an operator from another machine."""
        note = b'{"requested_at": "2026-01-01T00:00:00+00:00"}'
        self.blobs.put(KEYS.job(task_id, "cancel.json"), note)

    def weights(self, style_id: int) -> bytes | None:
        """The stored style."""
        try:
            return self.blobs.get(KEYS.weights(style_id)).data
        except BlobMissing:
            return None


def a_world(chance: random.Random, styles: int) -> World:
    """A world with ``styles`` tasks and their images."""
    timeline = Timeline(chance)
    tasks = {task.task_id.encode(): task for task in map(a_task, range(1, styles + 1))}
    world = World(
        timeline,
        Network(timeline, chance),
        tasks,
        MemoryBlobStore(),
        MemoryQueue(VirtualClock(timeline, Process("broker"))),
    )
    for server in (world.store, world.backend):
        server.latency = chance.choice([0.02, 0.02, 1.0, 6.0])
    for task in tasks.values():
        for image in task.images:
            world.blobs.put(image, str(image).encode())
    return world


def a_task(style_id: int) -> TrainingTask:
    """A style's task, the same in every run."""
    return TrainingTask(
        task_id=f"00000000-0000-4000-8000-{style_id:012d}",
        style_id=style_id,
        images=tuple(Location("media", f"{style_id}/{n:02d}.jpg") for n in range(IMAGES)),
        tags=("watercolour",),
        requested=RequestedParameters({"epochs": EPOCHS, "batch_size": BATCH}),
    )


def garbage(number: int) -> bytes:
    """A message that is not a task but names a style."""
    return f"garbage for style {100 + number}".encode()


def style_of(body: bytes) -> int:
    """The style that a garbage message names."""
    return int(body.rpartition(b" ")[2])
