"""The parameters of one training run: what was asked for, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from domain.limits import Limit, Number, OneOf, OutOfLimits, Prompts, Switch, Text, Whole

FEWEST_DEFAULT_EPOCHS = 100
MOST_DEFAULT_EPOCHS = 500


class InvalidParameter(ValueError):
    """A parameter is out of range; names it, and says what would be accepted."""

    def __init__(self, name: str, value: object, remedy: str) -> None:
        super().__init__(f"{name}={value!r}: {remedy}")
        self.name = name
        self.value = value
        self.remedy = remedy


class LearningRateSchedule(StrEnum):
    """How the learning rate moves after the warm-up; names as in diffusers."""

    CONSTANT = "constant_with_warmup"
    LINEAR = "linear"
    COSINE = "cosine"


def default_epochs(picture_count: int) -> int:
    """Epochs for a set of pictures when the task names none.

    ``clamp(700 - 20 * n, 100, 500)``: 500 at 10 pictures and fewer, 100 at 30 and more, a
    straight line between, so that small sets are seen often enough and large ones end in time.
    """
    line = 700 - 20 * picture_count
    return max(FEWEST_DEFAULT_EPOCHS, min(MOST_DEFAULT_EPOCHS, line))


@dataclass(frozen=True, kw_only=True)
class TrainingParameters:
    """Every choice of a run, validated; equal parameters and pictures give an equal style.

    Names are those of diffusers' text-to-image LoRA example where it has them.

    Raises:
        InvalidParameter: when a value is out of range.
    """

    epochs: int
    """Passes over all pictures, 1 to 10,000."""
    resolution: int
    """Pixel budget per picture is ``resolution ** 2``; 64 to 2048, a multiple of 64."""
    learning_rate: float = 1e-4
    """Peak learning rate, above 0 and at most 0.1."""
    batch_size: int = 1
    """Pictures per step, 1 to 64."""
    rank: int = 8
    """Rank of the adapters' matrices, 1 to 256."""
    alpha: float | None = None
    """Adapter scale is ``alpha / rank``; None means equal to the rank (scale 1)."""
    seed: int = 0
    """Seed of order, noise, timesteps and initial weights, 0 to 2**32 - 1."""
    trigger_word: str | None = None
    """A word put before every caption that does not already contain it."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts for the previews; empty means prompts taken from the captions. At most 8."""
    lr_scheduler: LearningRateSchedule = LearningRateSchedule.COSINE
    """Shape of the learning rate after the warm-up."""
    lr_warmup_steps: int | None = None
    """Steps of linear warm-up; None means a twentieth of the run, at most 100."""
    weight_decay: float = 1e-2
    """AdamW's decoupled weight decay, 0 to 1."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; above 0."""
    snr_gamma: float | None = None
    """Min-SNR weighting (arXiv 2303.09556), commonly 5; None leaves the plain loss."""
    noise_offset: float = 0.0
    """Per-channel noise shift, commonly 0.05 to 0.1; 0 to 1."""
    random_flip: bool = False
    """Mirror each picture left to right half of the time."""
    caption_dropout: float = 0.0
    """Share of visits that train on the empty caption, 0 to 1."""

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if value is None and name in MAY_BE_NONE:
                continue
            try:
                limit.check(value)
            except OutOfLimits as error:
                raise InvalidParameter(name, error.value, error.remedy) from None

    @property
    def network_alpha(self) -> float:
        """Alpha with its default resolved."""
        return float(self.rank if self.alpha is None else self.alpha)

    def warmup_steps(self, total_steps: int) -> int:
        """Steps of warm-up in a run of ``total_steps``."""
        if self.lr_warmup_steps is not None:
            return self.lr_warmup_steps
        return min(100, total_steps // 20)


LIMITS: Mapping[str, Limit] = {
    "epochs": Whole(1, 10_000),
    "resolution": Whole(64, 2048, multiple_of=64),
    "learning_rate": Number(0.0, 0.1, above_low=True),
    "batch_size": Whole(1, 64),
    "rank": Whole(1, 256),
    "alpha": Number(0.0, 1024.0, above_low=True),
    "seed": Whole(0, 2**32 - 1),
    "trigger_word": Text(100),
    "sample_prompts": Prompts(8, Text(500)),
    "lr_scheduler": OneOf(LearningRateSchedule),
    "lr_warmup_steps": Whole(0, 100_000),
    "weight_decay": Number(0.0, 1.0),
    "max_grad_norm": Number(0.0, 1e6, above_low=True),
    "snr_gamma": Number(0.0, 100.0, above_low=True),
    "noise_offset": Number(0.0, 1.0),
    "random_flip": Switch(),
    "caption_dropout": Number(0.0, 1.0),
}
"""What each parameter accepts, in the order in which they are checked."""
MAY_BE_NONE = frozenset(f.name for f in fields(TrainingParameters) if f.default is None)
"""Parameters for which None stands for something, as their fields say."""
PARAMETER_NAMES = frozenset(field.name for field in fields(TrainingParameters))
"""Every key that a task's ``parameters`` may carry and that means something to us."""


@dataclass(frozen=True)
class RequestedParameters:
    """The parameters that a task names, each already checked; the rest take their defaults.

    Raises:
        InvalidParameter: when a named value is out of range.
        ValueError: when a name is not a parameter.
    """

    named: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(self.named.keys() - PARAMETER_NAMES)
        if unknown:
            raise ValueError(f"not a training parameter: {', '.join(unknown)}")
        # Any count and size serve here: only the named values can be out of range.
        self.resolve(picture_count=10, native_resolution=512)

    def resolve(self, *, picture_count: int, native_resolution: int) -> TrainingParameters:
        """Fill in the defaults that depend on the pictures and on the base model."""
        defaults = {"epochs": default_epochs(picture_count), "resolution": native_resolution}
        values = {**defaults, **self.named}
        values["sample_prompts"] = tuple(values.get("sample_prompts", ()))
        return TrainingParameters(**values)
