"""Check that a worker can consume from the broker, without touching a message."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pika.exceptions import AMQPError, ChannelClosedByBroker

from adapters.rabbitmq.consumer import start_consumer

if TYPE_CHECKING:
    import pika

    from adapters.rabbitmq.options import RabbitOptions

PROBE_EXPIRES_MS = 60_000
"""Milliseconds after which the broker deletes a probe queue that the check left behind."""


@dataclass(frozen=True)
class BrokerFacts:
    """Properties of a broker that affect a worker's deliveries."""

    version: str
    quorum: bool
    """True where the main queue is a quorum queue, by the virtual host's default queue type."""

    def __str__(self) -> str:
        text = f"RabbitMQ {self.version}, {'quorum' if self.quorum else 'classic'} queue"
        if self.quorum:
            text += (
                ": set a dead-letter exchange and a delivery limit by policy "
                "(docs/operate.md, quorum queues)"
            )
        return text


def probe(connection: pika.BlockingConnection, options: RabbitOptions) -> BrokerFacts:
    """Start a worker's consumer on an empty queue of the main queue's type.

    Raises:
        AMQPError: the broker rejects it.
    """
    kind = _kind(connection, options.queue)
    name = f"{options.queue}.check.{uuid.uuid4().hex[:8]}"
    arguments = {"x-queue-type": kind, "x-expires": PROBE_EXPIRES_MS}
    channel = connection.channel()
    channel.queue_declare(name, durable=True, arguments=arguments)
    try:
        start_consumer(connection, name, lambda *_: None, options.ack_timeout).channel.close()
    finally:
        with contextlib.suppress(AMQPError):
            channel.queue_delete(name)
    return BrokerFacts(version(connection), kind == "quorum")


def version(connection: pika.BlockingConnection) -> str:
    """The server's version, from the properties it sends when a connection opens."""
    # BlockingConnection has no public access to the server's properties.
    properties = connection._impl.server_properties or {}
    return str(properties.get("version", "of unknown version"))


def _kind(connection: pika.BlockingConnection, queue: str) -> str:
    """The queue type of an existing queue.

    AMQP has no call that returns it. The broker rejects a declaration with another type, and its
    error text names the queue's own type. An invalid type cannot create a queue.
    """
    try:
        connection.channel().queue_declare(
            queue, durable=True, arguments={"x-queue-type": "unknown"}
        )
    except ChannelClosedByBroker as error:
        if "current is 'quorum'" in error.reply_text:
            return "quorum"
    return "classic"
