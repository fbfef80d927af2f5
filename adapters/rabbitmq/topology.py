"""The queues: the publisher's, and our own for what waits and for what is dead.

A message that waits lies in a queue whose every message expires after the same time, and
which then dead-letters it to the main queue. One queue with a time to live per message would
not do: messages expire at a queue's head alone, so that a short pause would wait behind a long
one. Hence a short ladder of queues, named after their pauses: a queue's time to live cannot be
changed, and another ladder has other names.

They are quorum queues because only those dead-letter at least once, which is from 3.10 on: the
broker confirms the message in the main queue before it forgets it here. A classic queue
forgets at once, and a message whose pause ends while the main queue is gone is gone too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel

_DEAD = {"x-queue-type": "classic"}
"""Said, because a virtual host may have another default, and a declared type stays."""


@dataclass(frozen=True)
class Topology:
    """Names of the queues, and what they are declared with."""

    main: str
    delays: tuple[float, ...]
    """Seconds, rising."""

    @property
    def dead(self) -> str:
        """Where dead letters lie."""
        return f"{self.main}.dead"

    @property
    def names(self) -> tuple[str, ...]:
        """Every queue."""
        return (self.main, *map(self._retry, self.delays), self.dead)

    def retry(self, delay: float) -> str:
        """Where a message waits for ``delay`` seconds: rounded up to a step of the ladder."""
        step = next((step for step in self.delays if step >= delay), self.delays[-1])
        return self._retry(step)

    def declare(self, channel: BlockingChannel) -> None:
        """Make the queues that are not there.

        The main queue without arguments, as the publisher declares it before each message: any
        argument would break whoever comes second.
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
    """A length of time as part of a name: 90s, 2m, 1h."""
    milliseconds = round(seconds * 1000)
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"
