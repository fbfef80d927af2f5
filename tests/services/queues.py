"""The machine's RabbitMQ, and queues on it that belong to one test."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from adapters.clock import SystemClock
from adapters.rabbitmq.options import RabbitOptions
from adapters.rabbitmq.queue import RabbitQueue
from adapters.rabbitmq.topology import Topology
from application.ports import Clock, Delivery, QueueUnavailable
from tests.services.missing import skip_or_fail
from tests.services.waiting import PATIENCE

PORT = int(os.environ.get("TEST_RABBITMQ_PORT", "5672"))
"""Port of the broker; tests/brokers sets another one."""


@contextmanager
def raw_channel(port: int = PORT, vhost: str = "/") -> Iterator[BlockingChannel]:
    """A plain pika channel, as other programs use."""
    parameters = pika.ConnectionParameters("127.0.0.1", port, vhost, connection_attempts=1)
    with pika.BlockingConnection(parameters) as connection:
        yield connection.channel()


def require_broker() -> None:
    """Skip the test if no broker runs; fail it in CI, where one must."""
    try:
        with raw_channel():
            return
    except (AMQPError, OSError) as error:
        reason = f"waits for RabbitMQ at 127.0.0.1:{PORT}: {error!r}"
    skip_or_fail(reason)


@contextmanager
def own_options(delays: tuple[float, ...] = (0.3, 1.5), **others: Any) -> Iterator[RabbitOptions]:
    """Options with a queue of the test's own; it and its companions are deleted afterwards."""
    require_broker()
    name = f"test.{uuid.uuid4().hex[:12]}"
    options = RabbitOptions(port=PORT, queue=name, retry_delays=delays, **others)
    try:
        yield options
    finally:
        with raw_channel() as channel:
            for queue in Topology(name, delays).names:
                channel.queue_delete(queue)


@contextmanager
def opened(
    options: RabbitOptions, worker: str = "worker-1", clock: Clock | None = None
) -> Iterator[RabbitQueue]:
    """A queue, closed afterwards. Without ``clock`` it has the machine's."""
    queue = RabbitQueue(options, worker=worker, clock=clock or SystemClock(), random=lambda: 0.5)
    try:
        yield queue
    finally:
        queue.close()


def receive(queue: RabbitQueue) -> Delivery:
    """The next message, retrying through outages."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            delivery = queue.receive(0.2)
        except QueueUnavailable:
            continue
        if delivery is not None:
            return delivery
    raise AssertionError("no message came")


def publish_as_the_backend(channel: BlockingChannel, queue: str, body: bytes) -> None:
    """Declare the queue and publish, as another program does."""
    channel.queue_declare(queue=queue, durable=True)
    properties = pika.BasicProperties(delivery_mode=2, content_type="application/json")
    channel.basic_publish("", queue, body, properties)


def fetch(channel: BlockingChannel, queue: str) -> tuple[pika.BasicProperties, bytes]:
    """Get the first message from a queue."""
    _, properties, body = channel.basic_get(queue, auto_ack=True)
    assert properties is not None
    assert body is not None
    return properties, body
