"""Calls that take virtual time and can fail on their way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from application.ports import Unavailable
from tests.simulation.timeline import Process, Timeline


class Fate(Enum):
    """Outcome of a call."""

    ANSWERED = auto()
    REFUSED = auto()
    """Fails immediately; nothing is done."""
    SILENT = auto()
    """Nothing is done, and the caller times out."""
    ANSWER_LOST = auto()
    """The call is performed, and the connection breaks."""
    ANSWER_LATE = auto()
    """The call is performed, but the caller has timed out before the response."""
    LATE = auto()
    """The call is performed after the caller has timed out."""


TROUBLES = tuple(fate for fate in Fate if fate is not Fate.ANSWERED)


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Faults of some calls to a server for a while."""

    begins: float
    ends: float
    """Virtual time in seconds."""
    chance: float
    fates: tuple[Fate, ...]
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
    troubles: list[Trouble] = field(default_factory=list)

    def trouble(self, process: Process, now: float) -> Trouble | None:
        """The current trouble for calls of that process, if any."""
        for trouble in self.troubles:
            if trouble.begins <= now < trouble.ends and trouble.who in (None, process):
                return trouble
        return None


class Network:
    """Transports calls to servers and responses back."""

    def __init__(self, timeline: Timeline, chance: random.Random) -> None:
        self._timeline = timeline
        self._chance = chance

    def call(self, process: Process, server: Server, effect: Callable[[], Any]) -> Any:
        """Call ``effect`` at the server. It is called even if the caller dies meanwhile.

        Raises:
            Unavailable: the server's error ``lost``.
        """
        fate = self._fate(process, server)
        there, back = (self._chance.expovariate(1 / server.latency) for _ in range(2))
        there, back = min(there, server.timeout / 3), min(back, server.timeout / 3)
        if fate is Fate.LATE:
            there = server.timeout * self._chance.uniform(1, 2)
        answers: list[Callable[[], Any]] = []
        if fate not in {Fate.REFUSED, Fate.SILENT}:
            self._timeline.at(self._timeline.now + there, lambda: answers.append(_try(effect)))
        quick = {Fate.ANSWERED: there + back, Fate.REFUSED: back, Fate.ANSWER_LOST: there + back}
        self._timeline.sleep(quick.get(fate, server.timeout))
        if fate is not Fate.ANSWERED:
            raise server.lost(f"a call was {fate.name.lower().replace('_', ' ')}")
        return answers[0]()

    def _fate(self, process: Process, server: Server) -> Fate:
        trouble = server.trouble(process, self._timeline.now)
        if trouble is None or self._chance.random() >= trouble.chance:
            return Fate.ANSWERED
        return self._chance.choice(trouble.fates)


def _try(effect: Callable[[], Any]) -> Callable[[], Any]:
    """Call ``effect`` now; the result returns its value or raises its error later."""
    try:
        given = effect()
    except Exception as error:
        raised = error

        def answer() -> Any:
            raise raised

        return answer
    return lambda: given
