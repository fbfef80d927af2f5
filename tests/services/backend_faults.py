"""Faults of the stand-in backend, and when they occur."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

ACCEPTED = ("reset_after", "hang_after", "cut", "slow_status", "slow_headers", "slow_body")
"""The call is accepted, and the response is lost or late."""
NOT_ACCEPTED = ("response", "reset_before", "hang")
KINDS = (*NOT_ACCEPTED, *ACCEPTED, "slow")


@dataclass(frozen=True)
class Fault:
    """One fault."""

    do: str
    """``response``: send ``status``, ``headers`` and ``body`` without accepting the call.
    ``reset_before``, ``reset_after``: reset the connection before or after accepting the call.
    ``hang``, ``hang_after``: send nothing for ``seconds``, without or after accepting the call.
    ``slow``: wait for ``seconds``, then respond normally.
    ``cut``: accept the call and send only part of the response body.
    ``slow_status``, ``slow_headers``, ``slow_body``: accept the call and respond up to there, then
    one byte at a time for ``seconds``."""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = ""
    """Text is sent as it is, anything else as JSON."""
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.do not in KINDS:
            raise ValueError(f"do={self.do!r}: give one of {', '.join(KINDS)}")
        if self.do == "response" and not 200 <= self.status <= 599:
            raise ValueError(f"status={self.status}: give one from 200 to 599")

    @property
    def accepted(self) -> bool:
        """Whether the call is accepted in spite of the fault."""
        return self.do in ACCEPTED


def response(status: int, *, retry_after: str | None = None, body: Any = "") -> Fault:
    """A fixed response; the call is not accepted."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return Fault("response", status, headers, body)


class FaultPlan:
    """A schedule of faults, one entry per call or None for no fault; then random faults.

    Args:
        schedule: faults of the next calls.
        probability: of a fault from ``among`` for each call after the schedule.
        seed: of the random choices.
        kinds: the requests that get faults: ``progress``, ``complete``, ``failed``, and ``style``
            for reading a style. None: all but the last.
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
        """The plan from the body of ``POST /_faults``: these arguments, faults as objects."""
        if not isinstance(plan, dict):
            raise ValueError("give an object")
        schedule = [fault and Fault(**fault) for fault in plan.pop("schedule", ())]
        among = [Fault(**fault) for fault in plan.pop("among", ())]
        return FaultPlan(schedule, among=among, **plan)

    def next(self, kind: str) -> Fault | None:
        """The fault for this call."""
        if kind not in self._kinds:
            return None
        if self._schedule:
            return self._schedule.pop(0)
        if self._random.random() < self._probability:
            return self._random.choice(self._among)
        return None
