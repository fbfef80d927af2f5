"""The machine's RabbitMQ, and queues on it that belong to one test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from adapters.clock import SystemClock
from adapters.rabbitmq.options import RabbitOptions
from adapters.rabbitmq.queue import RabbitQueue
from adapters.rabbitmq.topology import Topology

PORT = 5672


@contextmanager
def raw_channel(port: int = PORT) -> Iterator[BlockingChannel]:
    """A channel as any other program has one."""
    parameters = pika.ConnectionParameters("127.0.0.1", port, connection_attempts=1)
    with pika.BlockingConnection(parameters) as connection:
        yield connection.channel()


def require_broker() -> None:
    """Skip the test where no broker runs; fail it in CI, where one must."""
    try:
        with raw_channel():
            return
    except (AMQPError, OSError) as error:
        reason = f"waits for RabbitMQ at 127.0.0.1:{PORT}: {error!r}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def own_options(
    delays: tuple[float, ...] = (0.3, 1.5), **others: object
) -> Iterator[RabbitOptions]:
    """Options with a queue that no other test has; it and its companions vanish afterwards."""
    require_broker()
    name = f"test.{uuid.uuid4().hex[:12]}"
    options = RabbitOptions(queue=name, retry_delays=delays, **others)  # type: ignore[arg-type]
    try:
        yield options
    finally:
        with raw_channel() as channel:
            for queue in Topology(name, delays).names:
                channel.queue_delete(queue)


@contextmanager
def opened(options: RabbitOptions, worker: str = "worker-1") -> Iterator[RabbitQueue]:
    """A queue, closed afterwards."""
    queue = RabbitQueue(options, worker=worker, clock=SystemClock(), random=lambda: 0.5)
    try:
        yield queue
    finally:
        queue.close()
