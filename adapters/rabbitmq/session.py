"""One connection from open to close: its channels, its consumer, its unsettled messages.

Call everything from the one thread that owns the connection. A session knows only its own
deliveries, because a delivery tag is valid only on the channel that issued it. Unsettled
deliveries are lost with their session.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import pika
from pika import BasicProperties, exceptions, spec
from pika.adapters.blocking_connection import BlockingChannel

from adapters.rabbitmq import message_properties
from adapters.rabbitmq.check import BrokerFacts, probe
from adapters.rabbitmq.consumer import Consumer, start_consumer, why_cancelled
from adapters.rabbitmq.errors import SessionEnded
from adapters.rabbitmq.options import RabbitOptions
from adapters.rabbitmq.topology import Topology
from application.ports import MAX_MESSAGE_BYTES, Delivery, DeliveryLost, QueueUnavailable

log = logging.getLogger(__name__)

MAX_RETURNS = 5
"""A quorum queue drops a message that came back to it more often than its delivery limit: 20 by
default since RabbitMQ 4.0, counting lost connections and, before 4.3, requeues. A message that
came back this often is replaced by a copy at the end of the queue, which is counted from 0. With
a smaller number a few lost connections would move a message to the end of the queue."""


class Rejected(QueueUnavailable):
    """The broker rejected a published message; the session stays usable."""


@dataclass(frozen=True)
class UnackedMessage:
    """An unsettled message with its whole body."""

    tag: int
    """Delivery tag on the channel that received it."""
    properties: BasicProperties
    body: bytes


class Session:
    """An open connection with its queues declared.

    Args:
        name: shown in the broker's list of connections.
        deliver: takes each message that arrives.

    Raises:
        Exception: any that pika raises when it cannot connect or declare.
    """

    def __init__(
        self,
        options: RabbitOptions,
        topology: Topology,
        name: str,
        deliver: Callable[[Delivery], None],
    ) -> None:
        self._options = options
        self._topology = topology
        self._deliver = deliver
        self._held: dict[str, UnackedMessage] = {}
        self._consumer: Consumer | None = None
        self._connection = pika.BlockingConnection(_parameters(options, name))
        try:
            self._publisher = self._connection.channel()
            self._publisher.confirm_delivery()
            topology.declare(self._publisher)
        except BaseException:
            self.close()
            raise

    def wake(self) -> None:
        """Make ``pump`` return. The only method that other threads may call."""
        with contextlib.suppress(exceptions.ConnectionWrongStateError):
            self._connection.add_callback_threadsafe(lambda: None)

    def pump(self, seconds: float) -> None:
        """Serve the connection until an event, for at most ``seconds``.

        Raises:
            SessionEnded: a channel was closed or the consumer cancelled. pika itself raises
                nothing when a channel closes while its connection stays open.
        """
        self._connection.process_data_events(time_limit=seconds)
        if self._consumer is not None and self._consumer.cancelled:
            raise SessionEnded(why_cancelled(self._connection, self._topology.main))
        channels = [self._publisher, *([self._consumer.channel] if self._consumer else [])]
        for channel in channels:
            if not channel.is_open:
                # pika exposes the reason only to a call waiting on the channel.
                raise getattr(channel, "_closing_reason", None) or SessionEnded("a channel closed")

    def close(self) -> None:
        """Close consumer, channels and connection; unsettled messages are requeued."""
        with contextlib.suppress(Exception):
            if self._connection.is_open:
                self._connection.close()

    def consume(self) -> None:
        """Start consuming, unless started already."""
        if self._consumer is None:
            self._consumer = start_consumer(
                self._connection, self._topology.main, self._on_message, self._options
            )

    def publish(self, queue: str, body: bytes, properties: BasicProperties) -> None:
        """Publish a message and wait for the broker's confirm.

        Raises:
            Rejected: the broker did not accept it.
        """
        try:
            self._publisher.basic_publish("", queue, body, properties, mandatory=True)
        except exceptions.UnroutableError:
            raise Rejected(f"there is no queue {queue!r}") from None
        except exceptions.NackError:
            raise Rejected(
                f"the broker rejects messages for {queue!r}: check whether it is full"
            ) from None

    def acknowledge(self, delivery_id: str) -> None:
        """Acknowledge a message; the broker has removed it on return."""
        self._ack(self._take(delivery_id))

    def requeue(self, delivery_id: str) -> None:
        """Return a message to its former place in the queue."""
        held = self._take(delivery_id)
        self._consuming.basic_nack(held.tag, requeue=True)
        self._await_broker()

    def move(
        self, delivery_id: str, queue: str, relabel: Callable[[BasicProperties], BasicProperties]
    ) -> None:
        """Publish the whole message to ``queue``, then acknowledge it here."""
        held = self._take(delivery_id)
        try:
            self.publish(queue, held.body, relabel(held.properties))
        except Rejected as error:
            # Holding it would block the consumer; ending the session requeues it.
            raise SessionEnded(str(error)) from error
        self._ack(held)

    def depths(self) -> dict[str, int]:
        """Ready messages by queue, without unacknowledged ones."""
        # First deliver the messages that have arrived; the caller counts those.
        self._connection.process_data_events()
        channel = self.side_channel()
        try:
            return {
                name: channel.queue_declare(name, passive=True).method.message_count
                for name in self._topology.names
            }
        except exceptions.ChannelClosedByBroker as error:
            raise QueueUnavailable(
                f"the queue depths cannot be read: {error.reply_text}"
            ) from None
        finally:
            if channel.is_open:
                channel.close()

    def check(self) -> BrokerFacts:
        """Check that consuming works, on a temporary queue."""
        return probe(self._connection, self._options)

    def side_channel(self) -> BlockingChannel:
        """A separate channel; its errors leave the others open."""
        return self._connection.channel()

    @property
    def _consuming(self) -> BlockingChannel:
        if self._consumer is None:
            raise DeliveryLost("this connection has received nothing")
        return self._consumer.channel

    def _on_message(
        self,
        channel: BlockingChannel,
        method: spec.Basic.Deliver,
        properties: BasicProperties,
        body: bytes,
    ) -> None:
        if message_properties.delivery_count(properties) >= MAX_RETURNS and self._copied(
            properties, body
        ):
            channel.basic_ack(method.delivery_tag)
            return
        delivery_id = f"{method.consumer_tag}:{method.delivery_tag}"
        self._held[delivery_id] = UnackedMessage(method.delivery_tag, properties, body)
        self._deliver(
            Delivery(
                delivery_id,
                body[: MAX_MESSAGE_BYTES + 1],
                message_properties.retries(properties),
                bool(method.redelivered),
            )
        )

    def _copied(self, properties: BasicProperties, body: bytes) -> bool:
        """Publish a copy to the end of the main queue; False if the broker rejects it."""
        try:
            self.publish(self._topology.main, body, message_properties.copy(properties))
        except Rejected as error:
            log.warning(
                "a message is close to its queue's delivery limit and cannot be published "
                "again: %s",
                error,
            )
            return False
        return True

    def _take(self, delivery_id: str) -> UnackedMessage:
        held = self._held.pop(delivery_id, None)
        if held is None:
            raise DeliveryLost(
                f"delivery {delivery_id} is already settled, or belongs to a former connection"
            )
        return held

    def _ack(self, held: UnackedMessage) -> None:
        self._consuming.basic_ack(held.tag)
        self._await_broker()

    def _await_broker(self) -> None:
        """Wait for a round trip on the channel: acknowledgements have no reply of their own."""
        self._consuming.basic_qos(prefetch_count=self._options.prefetch)


def _parameters(options: RabbitOptions, name: str) -> pika.ConnectionParameters:
    ssl_options = None
    if options.tls is not None:
        ssl_options = pika.SSLOptions(options.tls.context(), options.host)
    return pika.ConnectionParameters(
        host=options.host,
        port=options.effective_port,
        virtual_host=options.vhost,
        credentials=pika.PlainCredentials(options.user, options.password),
        ssl_options=ssl_options,
        heartbeat=options.heartbeat,
        socket_timeout=options.connect_timeout,
        stack_timeout=options.connect_timeout,
        blocked_connection_timeout=options.response_timeout,
        client_properties={"connection_name": name},
    )
