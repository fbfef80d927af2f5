"""The task queue on RabbitMQ."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

from pika import BasicProperties

from adapters.common.queue_ports import DeadLetterAction, DeadMessage
from adapters.rabbitmq import message_properties
from adapters.rabbitmq.check import BrokerFacts
from adapters.rabbitmq.connection import Connection
from adapters.rabbitmq.dead_letters import process_dead_letters
from adapters.rabbitmq.inbox import Inbox
from adapters.rabbitmq.options import RabbitOptions
from adapters.rabbitmq.session import Session
from adapters.rabbitmq.topology import Topology
from application.ports import Clock, Delivery, DeliveryLost

log = logging.getLogger(__name__)


class RabbitQueue:
    """Ports ``Queue``, ``DeadLetters`` and ``QueueDepths``.

    Connects on the first call and always reconnects. Consumes one message for each thread that
    receives. If the thread stops receiving before the message arrives, another worker gets it.
    A delivery is lost with the connection that brought it. A settling call returns once the
    broker has confirmed it. If it raises ``QueueUnavailable``, the message is redelivered; if
    the broker had already stored the copy for a retry or dead letter, both are delivered.

    Args:
        worker: this worker's name, for dead letters and for the broker's list of connections.
        random: returns 0 to 1; spreads the reconnects of many workers.
    """

    def __init__(
        self, options: RabbitOptions, *, worker: str, clock: Clock, random: Callable[[], float]
    ) -> None:
        self._worker = worker
        self._clock = clock
        self._topology = Topology(options.queue, options.retry_delays)
        self._inbox = Inbox(clock)
        name = f"style-trainer {worker}"
        self._connection = Connection(
            options,
            lambda: Session(options, self._topology, name, self._inbox),
            self._inbox.clear,
            clock,
            random,
        )

    def publish(self, body: bytes) -> None:
        """Publish a message as the backend does, with a publisher confirm."""
        queue, properties = self._topology.main, message_properties.new_task()
        self._connection.call(lambda session: session.publish(queue, body, properties))

    def receive(self, timeout: float) -> Delivery | None:
        """The next message; a body that is too long is returned cut."""
        self._connection.open()
        delivery = self._inbox.take(timeout, self._connection.wake)
        if delivery is None:
            self._connection.check()
        return delivery

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge the message."""
        self._settle(delivery, lambda session: session.acknowledge(delivery.id))

    def retry_later(
        self, delivery: Delivery, delay: float, reason: str, *, counts: bool = True
    ) -> None:
        """Move the message to the retry queue with the next longer delay."""
        queue = self._topology.retry(delay)
        log.info("message moved to retry queue %s: %s", queue, reason)
        self._move(
            delivery, queue, partial(message_properties.delayed, reason=reason, counts=counts)
        )

    def dead_letter(
        self, delivery: Delivery, reason: str, details: Mapping[str, str] | None = None
    ) -> None:
        """Move the whole message, of any length, to the dead letters."""
        label = partial(
            message_properties.dead_letter,
            reason=reason,
            details=details or {},
            worker=self._worker,
            since=self._clock.now(),
        )
        self._move(delivery, self._topology.dead, label)

    def requeue(self, delivery: Delivery) -> None:
        """Return the message to the queue for redelivery."""
        self._settle(delivery, lambda session: session.requeue(delivery.id))

    def process_dead_letters(
        self, decide: Callable[[DeadMessage], DeadLetterAction]
    ) -> list[DeadMessage]:
        """Pass the dead letters to ``decide`` and apply its results; kept ones stay in order.

        Skips letters that arrive meanwhile or that another process holds.
        """
        return process_dead_letters(self._connection, self._topology, decide)

    def depths(self) -> Mapping[str, int]:
        """Messages by queue: main, retry and dead-letter queues."""
        depths = self._connection.call(Session.depths)
        depths[self._topology.main] += len(self._inbox)
        return depths

    def check(self) -> BrokerFacts:
        """Check that a worker can receive tasks, without taking any.

        Raises:
            QueueUnavailable: the broker is unreachable or denies access; with the remedy.
        """
        return self._connection.call(Session.check)

    def close(self) -> None:
        """Disconnect for good. Unsettled messages go to another worker at once."""
        self._connection.close()

    def _move(
        self, delivery: Delivery, queue: str, relabel: Callable[[BasicProperties], BasicProperties]
    ) -> None:
        self._settle(delivery, lambda session: session.move(delivery.id, queue, relabel))

    def _settle(self, delivery: Delivery, how: Callable[[Session], None]) -> None:
        lost = DeliveryLost(f"the connection of delivery {delivery.id} was lost")
        self._connection.call(how, lost=lost)
