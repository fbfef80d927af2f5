"""Which layers of the UNet and the text encoder carry LoRA."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from domain.parameters import LoraTargets

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of every attention layer, self and cross."""
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
_CONVOLUTIONS = (
    *("proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj"),
    *("downsamplers.0.conv", "upsamplers.0.conv"),
)
UNET_LAYERS = {
    LoraTargets.ATTENTION: ATTENTION,
    LoraTargets.FEED_FORWARD: ATTENTION + _FEED_FORWARD,
    LoraTargets.CONVOLUTIONS: ATTENTION + _FEED_FORWARD + _CONVOLUTIONS,
}
"""Endings of the names of the layers that carry LoRA."""
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_ENCODER_LAYERS = {
    LoraTargets.ATTENTION: _TEXT_ATTENTION,
    LoraTargets.FEED_FORWARD: (*_TEXT_ATTENTION, "fc1", "fc2"),
    LoraTargets.CONVOLUTIONS: (*_TEXT_ATTENTION, "fc1", "fc2"),
}
_SELF_ATTENTION, _CROSS_ATTENTION = ("to_q", "to_k", "to_v"), ("to_k", "to_v")

TargetLayers = dict[str, torch.nn.Linear | torch.nn.Conv2d]
"""Layers by their names in the model, in the model's order."""


def layers_ending(model: torch.nn.Module, endings: Iterable[str]) -> TargetLayers:
    """The linear and convolutional layers whose names end with one of these."""
    dotted = tuple(f".{ending}" for ending in endings)
    return {
        name: layer
        for name, layer in model.named_modules()
        if name.endswith(dotted) and isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }


def shared_inputs(unet: torch.nn.Module, names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of layers that read the same input: an attention's projections of the feature map, or
    of the text."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parent, _, child = name.rpartition(".")
        cross = getattr(unet.get_submodule(parent), "is_cross_attention", False)
        shares = child in (_CROSS_ATTENTION if cross else _SELF_ATTENTION)
        groups.setdefault(parent if shares else name, []).append(name)
    return [tuple(group) for group in groups.values()]
