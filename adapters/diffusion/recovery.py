"""How often a run may go back to where it was well, and what it then does differently."""

from __future__ import annotations

from dataclasses import dataclass

MOST_RECOVERIES = 3
"""Times that a run goes back before it is given up."""
_SLOWER = 0.5


@dataclass(frozen=True)
class Recovery:
    """Part of a run's state: a resumed run has not forgotten its failures."""

    count: int = 0

    @property
    def factor(self) -> float:
        """Of the schedule's learning rate: halved each time, for the rest of the run."""
        return float(_SLOWER**self.count)

    def next(self) -> Recovery | None:
        """After one more failure; None when the run is to be given up."""
        return Recovery(self.count + 1) if self.count < MOST_RECOVERIES else None
