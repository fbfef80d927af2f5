"""The results of a training: checkpoints, weights and metrics."""

from __future__ import annotations

from dataclasses import dataclass

from domain.location import Location


@dataclass(frozen=True)
class CheckpointRef:
    """A stored checkpoint's location, epoch and step."""

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
    """The metrics of a finished style."""

    loss: float
    """Mean loss of the last epoch."""
    epochs: int
    steps: int
    best_epoch: int | None = None
    """The evaluated epoch with the lowest loss; None if none was evaluated."""
