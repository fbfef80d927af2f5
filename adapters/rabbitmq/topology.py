"""The queues: the backend's main queue, and the worker's retry and dead-letter queues.

A delayed message lies in a retry queue, where all messages have the same time to live (TTL). An
expired message is dead-lettered to the main queue. One queue with a TTL per message would not
work: messages expire only at a queue's head, so that a short delay would wait behind a long one.
A queue's TTL cannot be changed; each retry queue is therefore named after its delay.

The worker's queues are quorum queues because only those dead-letter at least once (from 3.10):
the main queue confirms the message before the retry queue removes it. A classic queue
removes it first, and loses a message that expires while the main queue does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel

_DEAD = {"x-queue-type": "classic"}
"""Explicit, because a virtual host may have another default and the type cannot be changed."""


@dataclass(frozen=True)
class Topology:
    """Names and arguments of the queues."""

    main: str
    delays: tuple[float, ...]
    """Retry delays in seconds, ascending."""

    @property
    def dead(self) -> str:
        """The dead-letter queue."""
        return f"{self.main}.dead"

    @property
    def names(self) -> tuple[str, ...]:
        """All queues."""
        return (self.main, *map(self._retry, self.delays), self.dead)

    def retry(self, delay: float) -> str:
        """The retry queue for ``delay`` seconds, rounded up to an available delay."""
        step = next((step for step in self.delays if step >= delay), self.delays[-1])
        return self._retry(step)

    def declare(self, channel: BlockingChannel) -> None:
        """Declare all queues.

        Declares the main queue without arguments, as the backend does before each message:
        different arguments would make the later declaration fail.
        """
        channel.queue_declare(self.main, durable=True)
        for delay in self.delays:
            channel.queue_declare(self._retry(delay), durable=True, arguments=self._waiting(delay))
        channel.queue_declare(self.dead, durable=True, arguments=dict(_DEAD))

    def _retry(self, step: float) -> str:
        return f"{self.main}.retry.{_span(step)}"

    def _waiting(self, delay: float) -> dict[str, Any]:
        return {
            "x-queue-type": "quorum",
            "x-overflow": "reject-publish",
            "x-dead-letter-strategy": "at-least-once",
            "x-message-ttl": round(delay * 1000),
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self.main,
        }


def _span(seconds: float) -> str:
    """A duration as part of a queue name: 90s, 2m, 1h."""
    milliseconds = round(seconds * 1000)
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"
