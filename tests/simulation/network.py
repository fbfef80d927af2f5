"""Calls that take virtual time and can fail on their way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from application.ports import Unavailable
from tests.simulation.timeline import Process, Timeline


class CallOutcome(Enum):
    """Outcome of a call."""

    COMPLETED = auto()
    REFUSED = auto()
    """Fails immediately; nothing is done."""
    SILENT = auto()
    """Nothing is done, and the caller times out."""
    RESPONSE_LOST = auto()
    """The call is performed, and the connection breaks."""
    RESPONSE_LATE = auto()
    """The call is performed, but the caller has timed out before the response."""
    LATE = auto()
    """The call is performed after the caller has timed out."""


FAILURES = tuple(outcome for outcome in CallOutcome if outcome is not CallOutcome.COMPLETED)


@dataclass(frozen=True, kw_only=True)
class Disruption:
    """Faults of some calls to a server for a while."""

    begins: float
    ends: float
    """Virtual time in seconds."""
    chance: float
    outcomes: tuple[CallOutcome, ...]
    who: Process | None = None
    """Process whose calls are affected; None: all."""


@dataclass
class Server:
    """A destination of calls."""

    timeout: float
    """Seconds after which a caller times out."""
    lost: Callable[[str], Unavailable]
    """The error that a timed-out caller gets."""
    latency: float = 0.05
    """Average seconds in each direction."""
    disruptions: list[Disruption] = field(default_factory=list)

    def disruption(self, process: Process, now: float) -> Disruption | None:
        """The current disruption of that process's calls, if any."""
        for disruption in self.disruptions:
            if disruption.begins <= now < disruption.ends and disruption.who in (None, process):
                return disruption
        return None


class Network:
    """Transports calls to servers and responses back."""

    def __init__(self, timeline: Timeline, chance: random.Random) -> None:
        self._timeline = timeline
        self._chance = chance
        self.late_calls = 0
        """Calls that reached their server after their caller's timeout."""

    def call(self, process: Process, server: Server, effect: Callable[[], Any]) -> Any:
        """Call ``effect`` at the server. It is called even if the caller dies meanwhile.

        Raises:
            Unavailable: the server's error ``lost``.
        """
        outcome = self._outcome(process, server)
        there, back = (self._chance.expovariate(1 / server.latency) for _ in range(2))
        there, back = min(there, server.timeout / 3), min(back, server.timeout / 3)
        if outcome is CallOutcome.LATE:
            self.late_calls += 1
            there = server.timeout * self._chance.uniform(1, 2)
        answers: list[Callable[[], Any]] = []
        if outcome not in {CallOutcome.REFUSED, CallOutcome.SILENT}:
            self._timeline.at(self._timeline.now + there, lambda: answers.append(_try(effect)))
        quick = {
            CallOutcome.COMPLETED: there + back,
            CallOutcome.REFUSED: back,
            CallOutcome.RESPONSE_LOST: there + back,
        }
        self._timeline.sleep(quick.get(outcome, server.timeout))
        if outcome is not CallOutcome.COMPLETED:
            raise server.lost(f"a call was {outcome.name.lower().replace('_', ' ')}")
        return answers[0]()

    def _outcome(self, process: Process, server: Server) -> CallOutcome:
        disruption = server.disruption(process, self._timeline.now)
        if disruption is None or self._chance.random() >= disruption.chance:
            return CallOutcome.COMPLETED
        return self._chance.choice(disruption.outcomes)


def _try(effect: Callable[[], Any]) -> Callable[[], Any]:
    """Call ``effect`` now; the result returns its value or raises its error later."""
    try:
        given = effect()
    except Exception as error:
        raised = error

        def response() -> Any:
            raise raised

        return response
    return lambda: given
