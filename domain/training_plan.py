"""Every input of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime

from domain.errors import UserError
from domain.image import TrainingImage
from domain.label import UNNAMED, Label
from domain.limits import InvalidParameter
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
        """The parameters, with this LoRA's rank and alpha if ``dim_from_weights`` is set.

        Raises:
            UserError: its rank or alpha is beyond the limits of a run.
        """
        if not parameters.dim_from_weights:
            return parameters
        alpha = self.alpha
        if parameters.use_rslora:
            # rsLoRA divides by sqrt(rank). Rounded, since a file has its alpha in float32.
            alpha = float(f"{alpha / math.sqrt(self.rank):.6g}")
        try:
            return replace(parameters, rank=self.rank, alpha=alpha)
        except InvalidParameter as error:
            name, allowed = error.name, error.remedy.removeprefix("give ")
            raise UserError(
                f"the LoRA to start from has {name} {error.value}: "
                f"give one whose {name} is {allowed}"
            ) from None


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
