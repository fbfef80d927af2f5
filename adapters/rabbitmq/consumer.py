"""Start a consumer on any RabbitMQ from 3.10 to 4.3, and find out why one ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pika.exceptions import ChannelClosedByBroker

if TYPE_CHECKING:
    import pika
    from pika.adapters.blocking_connection import BlockingChannel

ACK_TIMEOUT = "x-consumer-timeout"
"""Consumer argument: milliseconds that a delivery may stay unacknowledged."""


@dataclass
class Consumer:
    """A consumer on a channel of its own, which gets one message until that is settled."""

    channel: BlockingChannel
    ack_timeout: float | None
    """Seconds; None where the broker rejects the argument."""
    tag: str = ""
    cancelled: bool = False
    """True once the broker has cancelled it. Channel and connection then stay open."""


def start_consumer(
    connection: pika.BlockingConnection,
    queue: str,
    on_message: Callable[..., None],
    ack_timeout: float | None,
) -> Consumer:
    """Consume from ``queue``, with an acknowledgement timeout where the broker accepts it.

    Brokers before 3.11.15 and 4.0 ignore the argument. 4.3 applies it to quorum queues and
    rejects it on classic queues, which have no acknowledgement timeout there.

    Args:
        ack_timeout: in seconds; None: request none.

    Raises:
        AMQPError: the broker rejects the consumer with and without the argument.
    """
    consumer = Consumer(connection.channel(), ack_timeout)

    def cancel(_frame: object) -> None:
        consumer.cancelled = True

    arguments = {} if ack_timeout is None else {ACK_TIMEOUT: round(ack_timeout * 1000)}
    consumer.channel.basic_qos(prefetch_count=1)
    consumer.channel.add_on_cancel_callback(cancel)
    try:
        consumer.tag = consumer.channel.basic_consume(queue, on_message, arguments=arguments)
    except ChannelClosedByBroker as error:
        if ack_timeout is None or ACK_TIMEOUT not in error.reply_text:
            raise
        return start_consumer(connection, queue, on_message, None)
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
