"""Calls that take time, and what can become of them on their way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from application.ports import Unavailable
from tests.simulation.timeline import Process, Timeline


class Fate(Enum):
    """What becomes of a call."""

    ANSWERED = auto()
    REFUSED = auto()
    """At once, and nothing is done."""
    SILENT = auto()
    """Nothing is done, and the caller waits in vain."""
    ANSWER_LOST = auto()
    """It is done, and the connection breaks."""
    ANSWER_LATE = auto()
    """It is done, and the caller has stopped waiting by then."""
    LATE = auto()
    """It is done after the caller has stopped waiting."""


TROUBLES = tuple(fate for fate in Fate if fate is not Fate.ANSWERED)


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What some calls on a server meet for a while."""

    begins: float
    ends: float
    """Seconds of virtual time."""
    chance: float
    fates: tuple[Fate, ...]
    who: Process | None = None
    """Whose calls; None: everybody's."""


@dataclass
class Server:
    """Somewhere that calls go to."""

    timeout: float
    """Seconds after which a caller gives up."""
    lost: Callable[[str], Unavailable]
    """What it raises then."""
    latency: float = 0.05
    """Seconds, on average, each way."""
    troubles: list[Trouble] = field(default_factory=list)

    def trouble(self, process: Process, now: float) -> Trouble | None:
        """What a call of that process would meet now."""
        for trouble in self.troubles:
            if trouble.begins <= now < trouble.ends and trouble.who in (None, process):
                return trouble
        return None


class Network:
    """Brings calls to servers and answers back."""

    def __init__(self, timeline: Timeline, chance: random.Random) -> None:
        self._timeline = timeline
        self._chance = chance

    def call(self, process: Process, server: Server, effect: Callable[[], Any]) -> Any:
        """Have ``effect`` happen at the server. It does, whatever becomes of the caller meanwhile.

        Raises:
            Unavailable: the server's own kind.
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
    """Have the effect; what it gives or raises is given or raised to whoever gets the answer."""
    try:
        given = effect()
    except Exception as error:
        raised = error

        def answer() -> Any:
            raise raised

        return answer
    return lambda: given
