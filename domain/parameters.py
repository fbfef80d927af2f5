"""The parameters of one training run: what was asked for, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

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
        _whole("epochs", self.epochs, 1, 10_000)
        _whole("resolution", self.resolution, 64, 2048)
        if self.resolution % 64:
            raise InvalidParameter("resolution", self.resolution, "give a multiple of 64")
        _number("learning_rate", self.learning_rate, 0.0, 0.1, above_low=True)
        _whole("batch_size", self.batch_size, 1, 64)
        _whole("rank", self.rank, 1, 256)
        if self.alpha is not None:
            _number("alpha", self.alpha, 0.0, 1024.0, above_low=True)
        _whole("seed", self.seed, 0, 2**32 - 1)
        if self.trigger_word is not None:
            _text("trigger_word", self.trigger_word, 100)
        if len(self.sample_prompts) > 8:
            raise InvalidParameter(
                "sample_prompts", len(self.sample_prompts), "give at most 8 prompts"
            )
        for prompt in self.sample_prompts:
            _text("sample_prompts", prompt, 500)
        try:
            LearningRateSchedule(self.lr_scheduler)
        except ValueError:
            names = ", ".join(LearningRateSchedule)
            raise InvalidParameter(
                "lr_scheduler", self.lr_scheduler, f"give one of {names}"
            ) from None
        if self.lr_warmup_steps is not None:
            _whole("lr_warmup_steps", self.lr_warmup_steps, 0, 100_000)
        _number("weight_decay", self.weight_decay, 0.0, 1.0)
        _number("max_grad_norm", self.max_grad_norm, 0.0, 1e6, above_low=True)
        if self.snr_gamma is not None:
            _number("snr_gamma", self.snr_gamma, 0.0, 100.0, above_low=True)
        _number("noise_offset", self.noise_offset, 0.0, 1.0)
        if not isinstance(self.random_flip, bool):
            raise InvalidParameter("random_flip", self.random_flip, "give true or false")
        _number("caption_dropout", self.caption_dropout, 0.0, 1.0)

    @property
    def network_alpha(self) -> float:
        """Alpha with its default resolved."""
        return float(self.rank if self.alpha is None else self.alpha)

    def warmup_steps(self, total_steps: int) -> int:
        """Steps of warm-up in a run of ``total_steps``."""
        if self.lr_warmup_steps is not None:
            return self.lr_warmup_steps
        return min(100, total_steps // 20)


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


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidParameter(name, value, f"give a whole number from {low:,} to {high:,}")


def _number(name: str, value: object, low: float, high: float, *, above_low: bool = False) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        inside = low < value <= high or (value == low and not above_low)
        if inside and math.isfinite(value):
            return
    bounds = f"above {low:g} and at most {high:g}" if above_low else f"from {low:g} to {high:g}"
    raise InvalidParameter(name, value, f"give a number {bounds}")


def _text(name: str, value: object, longest: int) -> None:
    if not isinstance(value, str) or not value.strip() or len(value) > longest:
        raise InvalidParameter(name, value, f"give text of 1 to {longest} characters")
