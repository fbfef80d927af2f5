"""A machine's ports, which connect to its world over the simulated network."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from adapters.memory import MemoryBlobStore, MemoryQueue
from application.fenced_blob import read_json
from application.journal import decode_record
from application.ports import (
    Blob,
    Condition,
    Delivery,
    DeliveryLost,
    QueueUnavailable,
    Unavailable,
)
from domain.failure import Failure
from domain.location import Bucket, Location
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric
from tests.simulation.network import Server
from tests.simulation.timeline import Process
from tests.simulation.world import KEYS, Call, World

PROGRESS_TIMEOUT = 5.0
"""Default timeout of progress calls in seconds."""


class Blobs:
    """Port ``BlobStore``, over the network."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def get(self, at: Location, *, max_bytes: int | None = None) -> Blob:
        found = self._call(lambda blobs: blobs.get(at, max_bytes=max_bytes))
        assert isinstance(found, Blob)
        return found

    def put(
        self,
        at: Location,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        condition: Condition | None = None,
    ) -> str:
        world = self._world

        def write(blobs: MemoryBlobStore) -> str:
            etag = blobs.put(at, data, condition=condition)
            if KEYS.recorded_task(at) is not None:
                job = read_json(blobs, at, decode_record)
                assert job is not None  # just written
                world.records.append((world.timeline.now, self._process, job))
            return etag

        put = self._call(write)
        assert isinstance(put, str)
        return put

    def delete(self, at: Location) -> None:
        self._call(lambda blobs: blobs.delete(at))

    def list(self, bucket: Bucket, prefix: str) -> list[Location]:
        found = self._call(lambda blobs: blobs.list(bucket, prefix))
        assert isinstance(found, list)
        return found

    def _call(self, effect: Callable[[MemoryBlobStore], Any]) -> Any:
        world = self._world
        return world.network.call(self._process, world.store, lambda: effect(world.blobs))


class Backend:
    """Port ``Notifier``, over the network."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._for_progress = Server(
            PROGRESS_TIMEOUT, world.backend.lost, world.backend.latency, world.backend.disruptions
        )

    def progress(self, style_id: int, progress: Progress) -> None:
        self._call("progress", style_id, None)

    def completed(
        self, task_id: str, style_id: int, artifact: Artifact, metric: TrainingMetric
    ) -> None:
        self._call("completed", style_id, task_id)

    def failed(self, task_id: str, style_id: int, failure: Failure) -> None:
        self._call("failed", style_id, task_id)

    def has_arrived(self, task_id: str, style_id: int, outcome: Artifact | Failure) -> bool | None:
        def accepted(call: Call) -> bool:
            return (call.kind, call.task_id) == (
                "completed",
                task_id,
            ) and call.accepted_at is not None

        if isinstance(outcome, Failure):
            return None
        world = self._world
        try:
            found = world.network.call(
                self._process, self._for_progress, lambda: any(map(accepted, world.calls))
            )
        except Unavailable:
            return None
        assert isinstance(found, bool)
        return found

    def _call(self, kind: str, style_id: int, task_id: str | None) -> None:
        world = self._world
        call = Call(kind, style_id, task_id, self._process, made_at=world.timeline.now)
        world.calls.append(call)

        def take() -> None:
            call.accepted_at = world.timeline.now

        server = self._for_progress if kind == "progress" else world.backend
        world.network.call(self._process, server, take)
        call.responded_at = world.timeline.now


class Connection:
    """Port ``Queue``: one connection to the broker, with the deliveries made over it."""

    def __init__(self, world: World, process: Process, chance: random.Random) -> None:
        self._world = world
        self._process = process
        self._chance = chance
        self._held: list[Delivery] = []

    def lose(self) -> None:
        """Break the connection: the broker requeues its deliveries."""
        for delivery in self._held:
            self._world.queue.take_back(delivery)
        self._held.clear()

    def publish(self, body: bytes) -> None:
        raise AssertionError("no worker publishes")

    def receive(self, timeout: float) -> Delivery | None:
        if self._broken():
            self.lose()
            raise QueueUnavailable("no broker")
        delivery = self._world.queue.receive(timeout)
        if delivery is not None:
            self._held.append(delivery)
        return delivery

    def acknowledge(self, delivery: Delivery) -> None:
        self._settle(delivery, lambda queue: queue.acknowledge(delivery))

    def retry_later(
        self, delivery: Delivery, delay: float, reason: str, *, counts: bool = True
    ) -> None:
        self._settle(
            delivery, lambda queue: queue.retry_later(delivery, delay, reason, counts=counts)
        )

    def dead_letter(
        self, delivery: Delivery, reason: str, details: Mapping[str, str] | None = None
    ) -> None:
        self._settle(delivery, lambda queue: queue.dead_letter(delivery, reason, details))

    def requeue(self, delivery: Delivery) -> None:
        self._settle(delivery, lambda queue: queue.requeue(delivery))

    def _settle(self, delivery: Delivery, settle: Callable[[MemoryQueue], None]) -> None:
        broken = self._broken()
        if delivery not in self._held:
            raise DeliveryLost("the connection broke meanwhile")
        if not broken:
            self._held.remove(delivery)
            settle(self._world.queue)
            return
        # Done, half done (moved to another queue but not acknowledged), or not done.
        done = self._chance.random()
        if done < 0.6:
            self._held.remove(delivery)
            settle(self._world.queue)
        if 0.3 < done < 0.6:
            self._world.queue.publish(delivery.body)
        self.lose()
        raise QueueUnavailable("no broker")

    def _broken(self) -> bool:
        disruption = self._world.broker.disruption(self._process, self._world.timeline.now)
        if disruption is None or self._chance.random() >= disruption.chance:
            return False
        self._world.timeline.sleep(self._chance.uniform(0, 2))
        return True
