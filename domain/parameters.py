"""The parameters of one training run: as requested, and with defaults filled in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from domain.limits import (
    Boolean,
    BoundedText,
    Choice,
    FloatRange,
    IntRange,
    InvalidParameter,
    Limit,
    Prompts,
)

MIN_DEFAULT_EPOCHS = 100
MAX_DEFAULT_EPOCHS = 500
PRODIGY_LEARNING_RATE = 1.0
"""Prodigy's default factor, as its authors advise: the unscaled estimate."""
SECOND_TRY_FACTOR = 0.1
"""Factor by which a second try lowers the learning rate."""


class LearningRateSchedule(StrEnum):
    """The learning rate after the warm-up; names as in diffusers' ``get_scheduler``."""

    CONSTANT = "constant"
    """The peak rate at every step, without warm-up."""
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    """``lr_num_cycles`` half cosines, each from the peak (arXiv 1608.03983)."""
    POLYNOMIAL = "polynomial"
    """Falls with the power ``lr_power`` of the share of steps left."""


class OptimizerName(StrEnum):
    """The optimizers; names as in kohya's trainer and diffusers' examples."""

    ADAMW = "adamw"
    """AdamW (arXiv 1711.05101)."""
    ADAMW_8BIT = "adamw8bit"
    """AdamW with 8-bit moments (arXiv 2110.02861), from bitsandbytes."""
    PRODIGY = "prodigy"
    """Estimates the learning rate itself (arXiv 2306.06101), from prodigyopt."""


class LoraTargets(StrEnum):
    """The layers of the UNet that get LoRA layers."""

    ATTENTION = "attention"
    """The four projections of every attention block, as in diffusers' examples."""
    FEED_FORWARD = "attention+ff"
    """Attention and feed-forward layers."""
    CONVOLUTIONS = "attention+ff+conv"
    """Attention and feed-forward layers, the projections around each transformer, and the layers
    of residual blocks and samplers; kohya's LoRA-C3Lier."""


class DeliveredEpoch(StrEnum):
    """Which epoch's weights become the style."""

    LAST = "last"
    BEST = "best"
    """The epoch with the lowest measured loss."""
    AUTO = "auto"
    """The last epoch; the best one if the last is measurably worse, or worse than the base."""


def default_epochs(image_count: int) -> int:
    """Default number of epochs for a set of images.

    ``clamp(700 - 20 * n, 100, 500)``: 500 for up to 10 images, 100 from 30 images on, linear in
    between, so that small sets are trained on enough and large sets finish in time.
    """
    line = 700 - 20 * image_count
    return max(MIN_DEFAULT_EPOCHS, min(MAX_DEFAULT_EPOCHS, line))


@dataclass(frozen=True, kw_only=True)
class TrainingParameters:
    """All parameters of a run, validated; equal parameters and images give an equal style.

    Names follow diffusers' text-to-image LoRA example where possible.

    Raises:
        InvalidParameter: a value is out of range.
    """

    epochs: int
    """Passes over all images, 1 to 10,000."""
    resolution: int
    """Pixel budget per image is ``resolution ** 2``; 64 to 2048, a multiple of 64."""
    learning_rate: float = 1e-4
    """Peak learning rate, above 0 and at most 0.1. Prodigy multiplies its own estimate by it:
    the default is then 1, the maximum 10."""
    network_weights: str | None = None
    """An existing LoRA to start from, in any format that ``--export`` reads: for ``train`` a path,
    in a task ``s3://bucket/key`` or ``gs://bucket/key`` in a bucket of the images or of the
    weights. Its rank and layers must fit this run's."""
    dim_from_weights: bool = False
    """Take rank and alpha from ``network_weights``, which must be given."""
    train_text_encoder: bool = False
    """Train LoRA layers in the text encoder too, so that the style learns what its words mean.
    Captions are then encoded at every step, which costs time and memory."""
    text_encoder_lr: float | None = None
    """Peak learning rate of the text encoder's LoRA layers; it has no effect without
    ``train_text_encoder``. kohya, whose trainer uses this name, advises a tenth to a half of the
    UNet's rate. With prodigy it is a factor like ``learning_rate``: 0.1 to 0.5 if that is 1.
    Default: ``learning_rate``."""
    batch_size: int = 1
    """Images per step, 1 to 64."""
    rank: int = 8
    """Rank of the LoRA matrices, 1 to 256."""
    alpha: float | None = None
    """LoRA layers are scaled by ``alpha / rank`` (arXiv 2106.09685). Default: the rank
    (scale 1)."""
    lora_targets: LoraTargets = LoraTargets.ATTENTION
    """Layers that get LoRA: attention, attention+ff or attention+ff+conv."""
    lora_dropout: float = 0.0
    """Dropout probability of a LoRA layer's inputs, 0 to 0.99, as in PEFT."""
    use_rslora: bool = False
    """Scale by ``alpha / sqrt(rank)`` (rsLoRA, arXiv 2312.03732), for high ranks."""
    use_dora: bool = False
    """Train each layer's magnitudes beside its direction (DoRA, arXiv 2402.09353). The file is
    then in diffusers' format, which neither AUTOMATIC1111 nor ComfyUI reads; for ComfyUI convert
    it with ``--export kohya``."""
    seed: int = 0
    """Seed of order, noise, timesteps and initial weights, 0 to 2**32 - 1."""
    trigger_word: str | None = None
    """A word of 1 to 100 characters put before every caption that does not already contain it."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts for the previews, at most 8. Default: the first captions."""
    optimizer: OptimizerName = OptimizerName.ADAMW
    """adamw; adamw8bit (extra ``adam8bit``) or prodigy (extra ``prodigy``)."""
    lr_scheduler: LearningRateSchedule = LearningRateSchedule.COSINE
    """Shape of the learning rate after the warm-up: constant, constant_with_warmup, linear,
    cosine, cosine_with_restarts or polynomial, as in diffusers."""
    lr_warmup_steps: int | None = None
    """Steps of linear warm-up, at most 100,000. Default: a twentieth of the run, at most 100."""
    lr_num_cycles: int = 1
    """Cycles of cosine_with_restarts, 1 to 100."""
    lr_power: float = 1.0
    """Power of polynomial, above 0 and at most 10."""
    weight_decay: float = 1e-2
    """Decoupled weight decay (arXiv 1711.05101), 0 to 1."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; above 0."""
    snr_gamma: float | None = None
    """Min-SNR weighting (arXiv 2303.09556), commonly 5. Default: the plain loss."""
    noise_offset: float = 0.0
    """Per-channel noise shift ("Diffusion With Offset Noise", Guttenberg 2023), commonly 0.05 to
    0.1; 0 to 1."""
    random_flip: bool = False
    """Mirror each image left to right half of the time."""
    caption_dropout: float = 0.0
    """Probability of training on the empty caption instead (arXiv 2207.12598), 0 to 1."""
    shuffle_caption: bool = False
    """Train on each caption's tags (its parts between commas) in random orders, as kohya's trainer
    does. Eight variants of each caption are drawn from the seed before the run."""
    keep_tokens: int = 0
    """Number of first tags of each caption that ``shuffle_caption`` and
    ``caption_tag_dropout_rate`` leave in place, 0 to 100."""
    caption_tag_dropout_rate: float = 0.0
    """Probability that a variant of a caption leaves out a tag, 0 to 1."""
    caption_prefix: str | None = None
    """Text of 1 to 200 characters put before every caption, with a space between; it is part of
    the first tag."""
    caption_suffix: str | None = None
    """Text of 1 to 200 characters put after every caption, with a space between."""
    max_token_length: int = 75
    """Tokens of a caption that are read: 75, 150 or 225. With 150 or 225 a caption is encoded in
    chunks of 75 whose states are joined, as in kohya's trainer and AUTOMATIC1111."""
    validation_split: float = 0.0
    """Share of the images that is held out, to measure how the style generalizes, 0 to 0.5.
    Off by default: an artist chose each of 10 to 30 images for the style."""
    validation_epochs: int = 10
    """Epochs between measurements of the loss over fixed noises and timesteps; the last epoch is
    always measured. 0 turns all measurements off."""
    deliver: DeliveredEpoch = DeliveredEpoch.AUTO
    """Epoch that becomes the style: last, best (lowest measured loss) or auto. auto takes the
    last epoch, or the best one if the last one's measured loss is worse by more than two standard
    errors of the paired differences, or worse than the base model's."""

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            # The optimizer is checked earlier in LIMITS; it decides which limit of a rate applies.
            if name in LEARNING_RATES and self.optimizer is not OptimizerName.PRODIGY:
                limit = ADAMW_LEARNING_RATE
            value = getattr(self, name)
            if value is not None or name not in MAY_BE_NONE:
                limit.check(name, value)
            if isinstance(limit, Choice):
                # Convert a message's text to the enum member, so that equal values compare equal.
                object.__setattr__(self, name, limit.names(value))

    @property
    def network_alpha(self) -> float:
        """Alpha, or its default."""
        return float(self.rank if self.alpha is None else self.alpha)

    @property
    def text_encoder_share(self) -> float:
        """The text encoder's learning rate as a multiple of the UNet's."""
        if self.text_encoder_lr is None:
            return 1.0
        return self.text_encoder_lr / self.learning_rate

    @property
    def varies_captions(self) -> bool:
        """Whether runs train on several variants of each caption."""
        return self.shuffle_caption or self.caption_tag_dropout_rate > 0

    @property
    def lora_scale(self) -> float:
        """The factor of the product of a LoRA layer's matrices."""
        return self.network_alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def with_lower_learning_rate(self) -> TrainingParameters:
        """The parameters of the second try after a divergence."""
        lowered = {
            # The smallest rates would become 0, which is out of range.
            name: max(rate * SECOND_TRY_FACTOR, math.ulp(0.0))
            for name in LEARNING_RATES
            if (rate := getattr(self, name)) is not None
        }
        return replace(self, **lowered)

    def warmup_steps(self, total_steps: int) -> int:
        """Number of warm-up steps in a run of ``total_steps``; 0 for schedules without warm-up."""
        if self.lr_scheduler is LearningRateSchedule.CONSTANT:
            return 0
        if self.lr_warmup_steps is not None:
            return self.lr_warmup_steps
        return min(100, total_steps // 20)


ADAMW_LEARNING_RATE = FloatRange(0.0, 0.1, above_low=True)
"""Limit of AdamW's learning rates. Prodigy's are factors and may be larger."""
LEARNING_RATES = ("learning_rate", "text_encoder_lr")
"""The parameters that ``ADAMW_LEARNING_RATE`` applies to."""

LIMITS: Mapping[str, Limit] = {
    "epochs": IntRange(1, 10_000),
    "resolution": IntRange(64, 2048, multiple_of=64),
    "lora_targets": Choice(LoraTargets),
    "optimizer": Choice(OptimizerName),
    "lr_scheduler": Choice(LearningRateSchedule),
    "learning_rate": FloatRange(0.0, 10.0, above_low=True),
    "network_weights": BoundedText(1100),
    "dim_from_weights": Boolean(),
    "train_text_encoder": Boolean(),
    "text_encoder_lr": FloatRange(0.0, 10.0, above_low=True),
    "batch_size": IntRange(1, 64),
    "rank": IntRange(1, 256),
    "alpha": FloatRange(0.0, 1024.0, above_low=True),
    "lora_dropout": FloatRange(0.0, 0.99),
    "use_rslora": Boolean(),
    "use_dora": Boolean(),
    "seed": IntRange(0, 2**32 - 1),
    "trigger_word": BoundedText(100),
    "sample_prompts": Prompts(8, BoundedText(500)),
    "lr_warmup_steps": IntRange(0, 100_000),
    "lr_num_cycles": IntRange(1, 100),
    "lr_power": FloatRange(0.0, 10.0, above_low=True),
    "weight_decay": FloatRange(0.0, 1.0),
    "max_grad_norm": FloatRange(0.0, 1e6, above_low=True),
    "snr_gamma": FloatRange(0.0, 100.0, above_low=True),
    "noise_offset": FloatRange(0.0, 1.0),
    "random_flip": Boolean(),
    "caption_dropout": FloatRange(0.0, 1.0),
    "shuffle_caption": Boolean(),
    "keep_tokens": IntRange(0, 100),
    "caption_tag_dropout_rate": FloatRange(0.0, 1.0),
    "caption_prefix": BoundedText(200),
    "caption_suffix": BoundedText(200),
    "max_token_length": IntRange(75, 225, multiple_of=75),
    "validation_split": FloatRange(0.0, 0.5),
    "validation_epochs": IntRange(0, 10_000),
    "deliver": Choice(DeliveredEpoch),
}
"""The limit of each parameter, in the order of the checks."""
MAY_BE_NONE = frozenset(f.name for f in fields(TrainingParameters) if f.default is None)
"""Parameters that may be None; their fields' docstrings define its meaning."""
PARAMETER_NAMES = frozenset(field.name for field in fields(TrainingParameters))
"""All keys of a task's ``parameters`` that are read."""


@dataclass(frozen=True)
class RequestedParameters:
    """The parameters that a task sets, already checked; the others take their defaults.

    Raises:
        InvalidParameter: a value is out of range, or ``dim_from_weights`` lacks the weights.
        ValueError: a name is not a parameter.
    """

    named: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(self.named.keys() - PARAMETER_NAMES)
        if unknown:
            raise ValueError(f"not a training parameter: {', '.join(unknown)}")
        prompts = self.named.get("sample_prompts")
        if isinstance(prompts, list):
            # JSON and the command line give lists; convert them so that equal tasks compare equal.
            object.__setattr__(self, "named", {**self.named, "sample_prompts": tuple(prompts)})
        # The count and the resolution are arbitrary: only the named values can be out of range.
        found = self.resolve(image_count=10, native_resolution=512)
        if found.dim_from_weights and found.network_weights is None:
            remedy = "give network_weights too, or leave it out"
            raise InvalidParameter("dim_from_weights", True, remedy)

    def resolve(self, *, image_count: int, native_resolution: int) -> TrainingParameters:
        """Fill in the defaults that depend on the images, the base model and the optimizer."""
        defaults: dict[str, Any] = {
            "epochs": default_epochs(image_count),
            "resolution": native_resolution,
        }
        if self.named.get("optimizer") == OptimizerName.PRODIGY:
            defaults["learning_rate"] = PRODIGY_LEARNING_RATE
        return TrainingParameters(**{**defaults, **self.named})
