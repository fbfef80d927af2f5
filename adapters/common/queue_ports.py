"""The ports to a queue for operators: its dead letters and its depths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Protocol


@dataclass(frozen=True)
class DeadMessage:
    """One dead letter, as shown to an operator."""

    body: bytes
    reason: str
    details: Mapping[str, str] = field(default_factory=dict)
    since: datetime | None = None
    """Time of dead-lettering."""


class DeadLetterAction(Enum):
    """An operator's decision about a dead letter."""

    KEEP = "keep"
    PUT_BACK = "put back"
    """Move the message back to the queue."""
    DROP = "drop"


class DeadLetters(Protocol):
    """A queue's dead letters: messages that wait for an operator."""

    def process_dead_letters(
        self, decide: Callable[[DeadMessage], DeadLetterAction]
    ) -> list[DeadMessage]:
        """Call ``decide`` for each dead letter, oldest first, and apply its result.

        Putting a message back resets its retries. It is removed from the dead letters after the
        queue has stored it: a failure in between may duplicate the message but never loses it.

        Returns:
            Every dead letter, whether kept or not.

        Raises:
            QueueUnavailable: some messages may have been put back or dropped already.
        """


class QueueDepths(Protocol):
    """Queue depths, for gauges and autoscaling."""

    def depths(self) -> Mapping[str, int]:
        """Return the number of ready (undelivered) messages by queue name.

        Raises:
            QueueUnavailable: the depths cannot be read now.
        """
