"""Process the dead letters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

from pika.adapters.blocking_connection import BlockingChannel

from adapters.common.queue_ports import DeadLetterAction, DeadMessage
from adapters.rabbitmq import message_properties
from adapters.rabbitmq.connection import Connection
from adapters.rabbitmq.session import Session, UnackedMessage
from adapters.rabbitmq.topology import Topology
from application.ports import QueueUnavailable

_INTERRUPTED = "the connection was lost while processing the dead letters: repeat the command"


def process_dead_letters(
    connection: Connection, topology: Topology, decide: Callable[[DeadMessage], DeadLetterAction]
) -> list[DeadMessage]:
    """Pass each present dead letter to ``decide``; keep, drop or republish it as decided.

    All letters are held until the end on a separate channel. Closing it puts the kept ones back
    in place. ``decide`` is called on the caller's thread and may be slow.

    Raises:
        QueueUnavailable: some may have been republished or dropped.
    """
    reader = connection.call(lambda session: _DeadLetterReader(session, topology))
    shown = []
    try:
        for _ in range(reader.count):
            letter = connection.call(reader.next, lost=QueueUnavailable(_INTERRUPTED))
            if letter is None:
                break
            message = message_properties.dead_message(letter.properties, letter.body)
            shown.append(message)
            action = decide(message)
            if action is not DeadLetterAction.KEEP:
                put_back = action is DeadLetterAction.PUT_BACK
                remove = partial(reader.remove, letter, put_back=put_back)
                connection.call(remove, lost=QueueUnavailable(_INTERRUPTED))
    finally:
        # On failure the connection has ended, which closed the channel.
        with contextlib.suppress(QueueUnavailable):
            connection.call(reader.close, lost=QueueUnavailable(_INTERRUPTED))
    return shown


class _DeadLetterReader:
    """A channel that holds dead letters. Call its methods on the connection's thread only."""

    def __init__(self, session: Session, topology: Topology) -> None:
        self._session = session
        self._topology = topology
        self._channel: BlockingChannel = session.side_channel()
        declared = self._channel.queue_declare(topology.dead, passive=True)
        self.count: int = declared.method.message_count
        """Number of dead letters at the start."""

    def next(self, session: Session) -> UnackedMessage | None:
        self._check(session)
        method, properties, body = self._channel.basic_get(self._topology.dead)
        if method is None or properties is None:
            return None
        return UnackedMessage(method.delivery_tag, properties, body or b"")

    def remove(self, letter: UnackedMessage, session: Session, *, put_back: bool) -> None:
        self._check(session)
        if put_back:
            session.publish(
                self._topology.main, letter.body, message_properties.replayed(letter.properties)
            )
        self._channel.basic_ack(letter.tag)

    def close(self, session: Session) -> None:
        self._check(session)
        self._channel.close()

    def _check(self, session: Session) -> None:
        if session is not self._session or not self._channel.is_open:
            raise QueueUnavailable(_INTERRUPTED)
