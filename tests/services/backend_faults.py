"""What the stand-in backend does wrong, and when."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

TAKEN = ("reset_after", "hang_after", "cut", "drip_status", "drip_headers", "drip_body")
"""The call is taken, and the answer is lost or late."""
NOT_TAKEN = ("answer", "reset_before", "hang")
KINDS = (*NOT_TAKEN, *TAKEN, "slow")


@dataclass(frozen=True)
class Fault:
    """One way to misbehave."""

    do: str
    """``answer``: with ``status``, ``headers`` and ``body``, without taking the call.
    ``reset_before``, ``reset_after``: reset the connection, before or after taking the call.
    ``hang``, ``hang_after``: say nothing for ``seconds``, without or after taking the call.
    ``slow``: wait for ``seconds``, then behave.
    ``cut``: take the call and break the body of the answer off.
    ``drip_status``, ``drip_headers``, ``drip_body``: take the call and answer up to there, then
    a byte at a time for ``seconds``."""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = ""
    """A text is sent as it is, anything else as JSON."""
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.do not in KINDS:
            raise ValueError(f"do={self.do!r}: give one of {', '.join(KINDS)}")
        if self.do == "answer" and not 200 <= self.status <= 599:
            raise ValueError(f"status={self.status}: give one from 200 to 599")

    @property
    def taken(self) -> bool:
        """Whether the call is taken all the same."""
        return self.do in TAKEN


def answer(status: int, *, retry_after: str | None = None, body: Any = "") -> Fault:
    """An answer in place of the right one."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return Fault("answer", status, headers, body)


class FaultPlan:
    """First a schedule, one entry a call, None for a call that goes well; then chance.

    Args:
        schedule: for the next calls.
        probability: with which a call after the schedule meets one of ``among``.
        seed: of that chance.
        kinds: the requests that count: ``progress``, ``complete``, ``failed``, and ``style``
            for one that reads a style. None: all but the last.
    """

    def __init__(
        self,
        schedule: Iterable[Fault | None] = (),
        *,
        probability: float = 0.0,
        among: Iterable[Fault] = (),
        seed: int = 0,
        kinds: Iterable[str] | None = None,
    ) -> None:
        self._schedule = list(schedule)
        self._probability = probability
        self._among = list(among)
        self._random = random.Random(seed)
        self._kinds = {"progress", "complete", "failed"} if kinds is None else set(kinds)
        if probability and not self._among:
            raise ValueError("among is empty: give the faults to choose from")

    @staticmethod
    def from_json(plan: Any) -> FaultPlan:
        """The plan as ``POST /_faults`` has it: this class's arguments, faults as objects."""
        if not isinstance(plan, dict):
            raise ValueError("give an object")
        schedule = [fault and Fault(**fault) for fault in plan.pop("schedule", ())]
        among = [Fault(**fault) for fault in plan.pop("among", ())]
        return FaultPlan(schedule, among=among, **plan)

    def next(self, kind: str) -> Fault | None:
        """What this call meets."""
        if kind not in self._kinds:
            return None
        if self._schedule:
            return self._schedule.pop(0)
        if self._random.random() < self._probability:
            return self._random.choice(self._among)
        return None
