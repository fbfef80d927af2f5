"""Start a consumer on any RabbitMQ from 3.10 to 4.3, and find out why one ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pika.exceptions import ChannelClosedByBroker

if TYPE_CHECKING:
    import pika
    from pika.adapters.blocking_connection import BlockingChannel

    from adapters.rabbitmq.options import RabbitOptions

ACK_TIMEOUT = "x-consumer-timeout"
"""Consumer argument: milliseconds that a delivery may stay unacknowledged."""


@dataclass
class Consumer:
    """A consumer on a channel of its own, which gets one message until that is settled."""

    channel: BlockingChannel
    tag: str = ""
    cancelled: bool = False
    """True once the broker has cancelled it. Channel and connection then stay open."""


def start_consumer(
    connection: pika.BlockingConnection,
    queue: str,
    on_message: Callable[..., None],
    options: RabbitOptions,
) -> Consumer:
    """Consume from ``queue``, with ``options.ack_timeout`` where the broker accepts it.

    Brokers before 3.11.15 and 4.0 ignore the argument. 4.3 applies it to quorum queues and
    rejects it on classic queues, which have no acknowledgement timeout there.

    Raises:
        AMQPError: the broker rejects the consumer with and without the argument.
    """
    timeout = {ACK_TIMEOUT: round(options.ack_timeout * 1000)}
    try:
        return _start(connection, queue, on_message, timeout)
    except ChannelClosedByBroker as error:
        if ACK_TIMEOUT not in error.reply_text:
            raise
    return _start(connection, queue, on_message, {})


def _start(
    connection: pika.BlockingConnection,
    queue: str,
    on_message: Callable[..., None],
    arguments: dict[str, Any],
) -> Consumer:
    consumer = Consumer(connection.channel())

    def cancel(_frame: object) -> None:
        consumer.cancelled = True

    consumer.channel.basic_qos(prefetch_count=1)
    consumer.channel.add_on_cancel_callback(cancel)
    consumer.tag = consumer.channel.basic_consume(queue, on_message, arguments=arguments)
    return consumer


def why_cancelled(connection: pika.BlockingConnection, queue: str) -> str:
    """Why the broker has cancelled the consumer; AMQP itself gives no reason."""
    try:
        connection.channel().queue_declare(queue, passive=True)
    except ChannelClosedByBroker:
        return f"it cancelled the worker's consumer: queue {queue!r} was deleted"
    return (
        f"it cancelled the worker's consumer of queue {queue!r}, which still exists: a delivery "
        "exceeded its acknowledgement timeout (raise ACK_TIMEOUT), or the queue's node stopped"
    )
