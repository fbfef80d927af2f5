"""One connection from open to close: its channels, its consumers, its unsettled messages.

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
from adapters.rabbitmq.inbox import Inbox
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
        inbox: takes each message that arrives, and knows how many are wanted.

    Raises:
        Exception: any that pika raises when it cannot connect or declare.
    """

    def __init__(
        self,
        options: RabbitOptions,
        topology: Topology,
        name: str,
        inbox: Inbox,
    ) -> None:
        self._options = options
        self._topology = topology
        self._inbox = inbox
        self._ack_timeout: float | None = options.ack_timeout
        self._idle: dict[str, Consumer] = {}
        """Consumers without a message, by tag."""
        self._held: dict[str, tuple[Consumer, UnackedMessage]] = {}
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

    def match_receivers(self) -> None:
        """Consume one message for each thread that receives, and hold no other in the inbox."""
        missing = self._inbox.missing()
        for tag in list(self._idle)[missing:]:
            # pika requeues a message that arrives meanwhile.
            self._idle.pop(tag).channel.close()
        while len(self._idle) < missing:
            consumer = start_consumer(
                self._connection, self._topology.main, self._on_message, self._ack_timeout
            )
            # A broker that rejects the timeout logs each attempt as an error.
            self._ack_timeout = consumer.ack_timeout
            self._idle[consumer.tag] = consumer
        for delivery in self._inbox.remove_surplus():
            self.requeue(delivery.id)

    def pump(self, seconds: float) -> None:
        """Serve the connection until an event, for at most ``seconds``.

        Raises:
            SessionEnded: a channel was closed or a consumer cancelled. pika itself raises
                nothing when a channel closes while its connection stays open.
        """
        self.match_receivers()
        self._connection.process_data_events(time_limit=seconds)
        consumers = [*self._idle.values(), *(consumer for consumer, _ in self._held.values())]
        if any(consumer.cancelled for consumer in consumers):
            raise SessionEnded(why_cancelled(self._connection, self._topology.main))
        for channel in [self._publisher, *(consumer.channel for consumer in consumers)]:
            if not channel.is_open:
                # pika exposes the reason only to a call waiting on the channel.
                raise getattr(channel, "_closing_reason", None) or SessionEnded("a channel closed")

    def close(self) -> None:
        """Close consumers, channels and connection; unsettled messages are requeued."""
        with contextlib.suppress(Exception):
            if self._connection.is_open:
                self._connection.close()

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
        self._settle(*self._take(delivery_id))

    def requeue(self, delivery_id: str) -> None:
        """Return a message to its former place in the queue."""
        self._settle(*self._take(delivery_id), requeue=True)

    def move(
        self, delivery_id: str, queue: str, relabel: Callable[[BasicProperties], BasicProperties]
    ) -> None:
        """Publish the whole message to ``queue``, then acknowledge it here."""
        consumer, message = self._take(delivery_id)
        try:
            self.publish(queue, message.body, relabel(message.properties))
        except Rejected as error:
            # Holding it would block the consumer; ending the session requeues it.
            raise SessionEnded(str(error)) from error
        self._settle(consumer, message)

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
        consumer = self._idle.pop(method.consumer_tag)
        message = UnackedMessage(method.delivery_tag, properties, body)
        self._held[delivery_id] = (consumer, message)
        self._inbox.put(
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

    def _take(self, delivery_id: str) -> tuple[Consumer, UnackedMessage]:
        held = self._held.pop(delivery_id, None)
        if held is None:
            raise DeliveryLost(
                f"delivery {delivery_id} is already settled, or belongs to a former connection"
            )
        return held

    @staticmethod
    def _settle(consumer: Consumer, message: UnackedMessage, *, requeue: bool = False) -> None:
        """Acknowledge or requeue a message, and end its consumer."""
        # Cancel first: the broker sends a consumer the next message once this one is settled.
        consumer.channel.basic_cancel(consumer.tag)
        if requeue:
            consumer.channel.basic_nack(message.tag, requeue=True)
        else:
            consumer.channel.basic_ack(message.tag)
        # The reply to this also confirms the settlement, which has no reply of its own.
        consumer.channel.close()


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
