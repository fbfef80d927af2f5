"""A LoRA in memory, independent of its file format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch

from domain.errors import UserError

Tensors = dict[str, torch.Tensor]

UNET, TEXT_ENCODER = "unet", "text_encoder"

_UNET_LAYER = re.compile(
    r"conv_in|conv_out|time_embedding\.linear_[12]|"
    r"(?:down_blocks\.\d|up_blocks\.\d|mid_block)\.(?:"
    r"attentions\.\d\.(?:proj_in|proj_out|transformer_blocks\.0\.(?:"
    r"attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2)))|"
    r"resnets\.\d\.(?:conv1|conv2|conv_shortcut|time_emb_proj)|"
    r"(?:down|up)samplers\.0\.conv)"
)
_TEXT_LAYER = re.compile(
    r"text_model\.encoder\.layers\.\d+\.(?:self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12])"
)


class LoraFormat(StrEnum):
    """A family of programs whose layout of keys and files a LoRA follows."""

    DIFFUSERS = "diffusers"
    KOHYA = "kohya"
    PEFT = "peft"


class InvalidLoraFile(UserError, ValueError):
    """The file or folder is not a readable LoRA of Stable Diffusion 1.5."""


@dataclass(frozen=True)
class LayerWeights:
    """The LoRA of one layer: it adds ``alpha / rank * up @ down`` to the layer's weight."""

    down: torch.Tensor
    """(rank, inputs); of a convolution (rank, inputs, height, width)"""
    up: torch.Tensor
    """(outputs, rank); of a convolution (outputs, rank, 1, 1)"""
    alpha: float
    magnitude: torch.Tensor | None = None
    """DoRA's magnitudes, one-dimensional: (outputs,), or (inputs,) if ``per_input``"""
    per_input: bool = False
    """DoRA normalises the columns of the weight instead of its rows (OneTrainer; LyCORIS with
    ``wd_on_output=False``). PEFT and diffusers cannot express this."""

    @property
    def rank(self) -> int:
        """The number of rows of ``down``."""
        return int(self.down.shape[0])


LayerName = tuple[str, str]
"""The model (``unet`` or ``text_encoder``) and the layer's path in it, as diffusers names it."""
LoraWeights = Mapping[LayerName, LayerWeights]
"""A LoRA: the weights of all its layers."""


def text_path(module: str) -> str:
    """The path of a text encoder's layer in files; transformers 5 omits its ``text_model.``."""
    return "text_model." + module.removeprefix("text_model.")


def is_layer(name: LayerName) -> bool:
    """Whether Stable Diffusion 1.5 has a layer of this name that can carry LoRA."""
    model, path = name
    return bool((_UNET_LAYER if model == UNET else _TEXT_LAYER).fullmatch(path))


def uses_dora(weights: LoraWeights) -> bool:
    """Whether any layer has DoRA magnitudes."""
    return any(layer.magnitude is not None for layer in weights.values())


def require_output_magnitudes(weights: LoraWeights, form: LoraFormat) -> None:
    """Reject magnitudes per input, for formats that cannot express them.

    Raises:
        InvalidLoraFile: a layer's magnitudes are per input.
    """
    if any(layer.per_input for layer in weights.values()):
        raise InvalidLoraFile(
            "its DoRA magnitudes are per input (OneTrainer, or LyCORIS with wd_on_output=False), "
            f"which the {form} format cannot express; only --export kohya keeps them"
        )
