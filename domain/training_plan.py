"""Every input of a training run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from domain.image import TrainingImage
from domain.label import UNNAMED, Label
from domain.parameters import TrainingParameters


@dataclass(frozen=True)
class InitialLora:
    """An existing LoRA whose weights a run starts from."""

    data: bytes
    """A safetensors file."""
    rank: int
    alpha: float
    """Each layer adds ``alpha / rank * up @ down`` to the base weight."""

    def with_own_dimensions(self, parameters: TrainingParameters) -> TrainingParameters:
        """The parameters, with this LoRA's rank and alpha if ``dim_from_weights`` is set."""
        if not parameters.dim_from_weights:
            return parameters
        return replace(parameters, rank=self.rank, alpha=self.alpha)


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Every input of a training run. Equal plans on equal hardware give equal weights."""

    style_id: int
    images: tuple[TrainingImage, ...]
    tags: tuple[str, ...]
    parameters: TrainingParameters
    created_at: datetime | None = None
    label: Label = UNNAMED
    initial: InitialLora | None = None
