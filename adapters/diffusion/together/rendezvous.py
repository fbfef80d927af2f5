"""Where threads that each want the next step meet, so that one of them takes it for all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

Member = TypeVar("Member")

LEAST_PATIENCE = 0.02
"""Seconds for which those who are here wait for the others in any case."""
SHARE_OF_STEP = 0.5
"""Of the last step's duration they wait: by then a step without the others is the better use."""


class Rendezvous(Generic[Member]):
    """Runs one step at a time, each for everybody who is here.

    Whoever took part in a step is expected at the next one; who does not come in time (it stores
    a checkpoint, it draws previews) is gone without, until it comes again.

    Args:
        step: takes the step for some members, in the order of their coming; what it returns for
            a member is raised to it, and what it raises is raised to all of them.
        monotonic: seconds since some moment, never going back.
        least_patience: seconds to wait for those expected, however short a step is.
    """

    def __init__(
        self,
        step: Callable[[Sequence[Member]], Mapping[Member, Exception]],
        monotonic: Callable[[], float],
        least_patience: float = LEAST_PATIENCE,
    ) -> None:
        self._step = step
        self._now = monotonic
        self._least_patience = least_patience
        self._changed = threading.Condition()
        self._expected: set[Member] = set()
        self._here: list[Member] = []
        self._told: dict[Member, Exception | None] = {}
        self._stepping = False
        self._duration = 0.0
        self._since = 0.0

    def expect(self, member: Member) -> None:
        """The others wait for this one, as for those who took part in the last step."""
        with self._changed:
            self._expected.add(member)

    def excuse(self, member: Member) -> None:
        """Do not wait for this one, until it comes by itself."""
        with self._changed:
            self._expected.discard(member)
            self._changed.notify_all()

    def meet(self, member: Member) -> None:
        """Wait for the others, and return when a step has been taken with this member in it.

        Raises:
            Exception: what the step has for this member, or for all.
        """
        with self._changed:
            if not self._here:
                self._since = self._now()
            self._here.append(member)
            while member not in self._told:
                patience = self._patience()
                if self._stepping:
                    self._changed.wait()
                elif patience > 0:
                    self._changed.wait(patience)
                else:
                    self._lead()
            failure = self._told.pop(member)
        if failure is not None:
            raise failure

    def _patience(self) -> float:
        """Seconds that are left to wait for somebody; none where nobody is missing."""
        if self._expected <= set(self._here):
            return 0.0
        patience = max(self._least_patience, SHARE_OF_STEP * self._duration)
        return self._since + patience - self._now()

    def _lead(self) -> None:
        """Take the step for all who are here, without the lock meanwhile."""
        members, self._here = self._here, []
        self._expected = set(members)
        self._stepping = True
        began = self._now()
        broken = RuntimeError("the thread that took the step for all was ended")
        told: dict[Member, Exception | None] = dict.fromkeys(members, broken)
        self._changed.release()
        try:
            told = {**dict.fromkeys(members), **self._step(members)}
        except Exception as error:  # to each in its own thread, this one included
            told = dict.fromkeys(members, error)
        finally:
            self._changed.acquire()
            self._stepping = False
            self._since = self._now()
            self._duration = self._since - began
            self._told.update(told)
            self._changed.notify_all()
