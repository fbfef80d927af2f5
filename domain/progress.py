"""A job's progress, and its remaining time at the measured speed."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A job's position: numbers of finished epochs and steps."""

    current_epoch: int
    total_epochs: int
    current_step: int
    total_steps: int
    loss: float | None = None
    """Mean loss of the last finished epoch."""
    steps_per_second: float | None = None
    """Measured over the last minute of this run."""
    measured_loss: float | None = None
    """The last measured loss over fixed noises."""
    base_loss: float | None = None
    """The same loss of the base model without the style."""
    redone: int = 0
    """Steps counted as finished that are run again after returning to a checkpoint."""

    def __post_init__(self) -> None:
        if not 0 <= self.current_epoch <= self.total_epochs:
            raise ValueError(f"epoch {self.current_epoch} of {self.total_epochs}")
        if not 0 <= self.current_step <= self.total_steps:
            raise ValueError(f"step {self.current_step} of {self.total_steps}")

    @property
    def percent(self) -> int:
        """Finished steps in whole percent; 100 only after the last step."""
        return self.current_step * 100 // self.total_steps if self.total_steps else 100

    @property
    def estimated_seconds(self) -> int | None:
        """Seconds left at the measured speed, rounded up; None until a speed is measured."""
        if not self.steps_per_second:
            return None
        left = self.total_steps - self.current_step + self.redone
        return math.ceil(left / self.steps_per_second)


class Speedometer:
    """Measures steps per second over a sliding window of this run's own steps."""

    def __init__(self, window_seconds: float = 60.0) -> None:
        self._window = window_seconds
        self._samples: deque[tuple[float, int]] = deque()

    def observe(self, step: int, at: float) -> None:
        """Record that ``step`` steps were finished at monotonic time ``at``, in seconds."""
        self._samples.append((at, step))
        while len(self._samples) > 2 and at - self._samples[1][0] >= self._window:
            self._samples.popleft()

    @property
    def steps_per_second(self) -> float | None:
        """The measured speed; None until there are two samples at different times."""
        if len(self._samples) < 2:
            return None
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end - start) if end > start and last > first else None


@dataclass(frozen=True)
class StepReport:
    """The result of one step: numbers of finished epochs and steps."""

    epoch: int
    step: int
    epoch_finished: bool
