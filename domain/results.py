"""What a training leaves behind: checkpoints, the weights, and the figures that go with them."""

from __future__ import annotations

from dataclasses import dataclass

from domain.location import Location


@dataclass(frozen=True)
class CheckpointRef:
    """Where a stored checkpoint lies and which moment of the run it holds."""

    location: Location
    epoch: int
    step: int


@dataclass(frozen=True)
class Artifact:
    """The finished weights."""

    location: Location
    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True)
class TrainingMetric:
    """The figures that go with a finished style."""

    loss: float
    """Mean over the last epoch."""
    epochs: int
    steps: int
    best_epoch: int | None = None
    """The measured epoch with the lowest loss; None where nothing was measured."""
