"""Turn a file's tensors, sorted by layer, into checked LoRA weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum

import torch

from adapters.lora_files.lora_formats import (
    InvalidLoraFile,
    LayerName,
    LayerWeights,
    LoraWeights,
    is_layer,
)


class Part(StrEnum):
    """The role of one tensor in the LoRA of its layer, by kohya's names."""

    DOWN = "lora_down.weight"
    UP = "lora_up.weight"
    MID = "lora_mid.weight"
    """LyCORIS's Tucker decomposition of a convolution, (rank, rank, height, width)"""
    ALPHA = "alpha"
    MAGNITUDE = "dora_scale"


LayerParts = Mapping[LayerName, Mapping[Part, torch.Tensor]]
DefaultAlpha = Callable[[LayerName, int], float]
"""Default alpha of a layer, from its name and rank."""


def assemble(
    layers: LayerParts, default_alpha: DefaultAlpha, *, magnitude_shape_tells_axis: bool
) -> LoraWeights:
    """The LoRA that these tensors form.

    Args:
        magnitude_shape_tells_axis: true for kohya's format, where magnitudes of shape
            (1, inputs, ...) are per input. PEFT's and diffusers' are always per output.

    Raises:
        InvalidLoraFile: a layer is unknown or incomplete, or its tensors do not fit together
            or hold values that training cannot produce.
    """
    return {
        name: _layer(name, parts, default_alpha, magnitude_shape_tells_axis)
        for name, parts in layers.items()
    }


def _layer(
    name: LayerName,
    parts: Mapping[Part, torch.Tensor],
    default_alpha: DefaultAlpha,
    magnitude_shape_tells_axis: bool,
) -> LayerWeights:
    label = ".".join(name)
    if not is_layer(name):
        raise InvalidLoraFile(f"{label} is not a layer of Stable Diffusion 1.5")
    for part, tensor in parts.items():
        _check_values(f"{label} {part}", tensor)
    for part in (Part.DOWN, Part.UP):
        if part not in parts:
            raise InvalidLoraFile(f"{label} lacks its {part}")
    down, up = _plain(parts[Part.DOWN]), _plain(parts[Part.UP])
    if (mid := parts.get(Part.MID)) is not None:
        down = _without_mid(label, down, _plain(mid))
    rank = down.shape[0] if down.ndim else 0
    fits = down.ndim == up.ndim and down.ndim in (2, 4) and up.shape[1] == rank
    if not fits or (up.ndim == 4 and tuple(up.shape[2:]) != (1, 1)):
        shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise InvalidLoraFile(f"{label}: lora_up and lora_down of shapes {shapes} do not fit")
    if 0 in (*down.shape, *up.shape):
        raise InvalidLoraFile(f"{label} has rank 0 or no inputs or outputs")
    alpha = parts.get(Part.ALPHA)
    if alpha is not None and alpha.numel() != 1:
        raise InvalidLoraFile(f"{label} alpha has {alpha.numel()} values, not one")
    scale = default_alpha(name, rank) if alpha is None else float(alpha)
    if not math.isfinite(scale):
        raise InvalidLoraFile(f"{label} alpha is {scale}")
    if (magnitude := parts.get(Part.MAGNITUDE)) is None:
        return LayerWeights(down, up, scale)
    outputs, inputs = up.shape[0], down.shape[1]
    count, shape = magnitude.numel(), tuple(magnitude.shape)
    per_input = magnitude_shape_tells_axis and shape[:2] == (1, inputs) and count == inputs
    if count != outputs and not per_input:
        raise InvalidLoraFile(
            f"{label} {Part.MAGNITUDE} of shape {shape} is neither one value per output "
            f"({outputs}) nor one per input ({inputs})"
        )
    return LayerWeights(down, up, scale, _plain(magnitude).flatten(), per_input)


def _check_values(label: str, tensor: torch.Tensor) -> None:
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        if label.endswith(Part.ALPHA) and not tensor.is_complex():
            return
        raise InvalidLoraFile(
            f"{label} is {kind}, not floating point: give a LoRA that is not quantised"
        )
    if not torch.isfinite(_plain(tensor)).all():
        raise InvalidLoraFile(f"{label} holds NaN or infinity: the LoRA is broken")


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Float8 tensors as float16, which holds all their values and supports all operations."""
    return tensor.half() if tensor.element_size() == 1 else tensor


def _without_mid(label: str, down: torch.Tensor, mid: torch.Tensor) -> torch.Tensor:
    """The down matrix of an equivalent LoRA without LyCORIS's Tucker core.

    ``delta[o, i, y, x] = sum over r, s of up[o, r] mid[r, s, y, x] down[s, i]`` (Tucker-2).
    """
    rank = down.shape[0]
    if down.ndim != 4 or tuple(down.shape[2:]) != (1, 1) or mid.shape[:2] != (rank, rank):
        shapes = f"{tuple(mid.shape)} and {tuple(down.shape)}"
        raise InvalidLoraFile(f"{label}: lora_mid and lora_down of shapes {shapes} do not fit")
    folded = torch.einsum("rsyx,si->riyx", mid.float(), down[:, :, 0, 0].float())
    return folded.to(down.dtype)
