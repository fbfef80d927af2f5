"""The contents of a finished run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from domain.image import ImageSet
from domain.loss_curve import EpochRecord
from domain.parameters import TrainingParameters
from domain.results import Artifact, Preview, PreviewScores, TrainingMetric
from domain.task import TrainingTask


@dataclass(frozen=True)
class BaseFacts:
    """The base model's name and compatibility, for reports and files."""

    name: str
    is_sd15: bool
    """Whether its LoRAs are compatible with Stable Diffusion 1.5."""


@dataclass(frozen=True, kw_only=True)
class StyleReport:
    """The contents of a finished run's report."""

    task: TrainingTask
    base: BaseFacts
    parameters: TrainingParameters
    images: ImageSet
    history: Sequence[EpochRecord]
    before: tuple[Preview, ...]
    after: tuple[Preview, ...]
    checkpoint_previews: tuple[tuple[int, tuple[bytes, ...]], ...] = ()
    """Epochs with checkpoint previews, each with its PNGs: prompts and seeds are those of
    ``after``, in the same order."""
    scores: Mapping[int, PreviewScores] = field(default_factory=dict)
    """Preview scores by epoch, ascending. The scores of ``after`` have its weights' epoch."""
    artifact: Artifact
    metric: TrainingMetric
    seconds: float
    """Duration of this attempt, from its start to the stored weights."""
    attempt: int
    peak_memory: int
    """Bytes: of the run on a GPU, of the whole process on a CPU."""
