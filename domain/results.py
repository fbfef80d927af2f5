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
    delivered_epoch: int | None = None
    """The epoch whose weights are delivered; None in records of version 0.1."""
    measured_loss: float | None = None
    """Loss of the delivered weights over fixed noises: of held-out images if there are any, else
    of the training images; None if it was not evaluated."""
    base_loss: float | None = None
    """The same loss of the base model without the style."""


@dataclass(frozen=True)
class Checkpoint:
    """The complete state of a run, to resume it on this machine or another."""

    epoch: int
    step: int
    data: bytes
    """A safetensors file; its metadata holds the non-tensor state as JSON."""
