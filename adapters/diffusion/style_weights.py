"""Copy a style's weights between the packed LoRA and the layers of a LoRA file."""

from __future__ import annotations

import logging

import torch

from adapters.diffusion.lora_layers import LoraMatrices, StyleLora
from adapters.lora_files.files import decode_lora
from adapters.lora_files.lora_formats import (
    TEXT_ENCODER,
    UNET,
    InvalidLoraFile,
    LayerName,
    LayerWeights,
    LoraWeights,
    text_path,
)

log = logging.getLogger(__name__)


def weights_for_file(lora: StyleLora) -> LoraWeights:
    """The matrices in half precision; DoRA's magnitudes, a few kilobytes, stay float32."""
    return {
        name: LayerWeights(
            own.down.to(torch.float16),
            own.up.to(torch.float16),
            lora.alpha,
            None if own.magnitude is None else own.magnitude.clone(),
        )
        for name, own in _by_name(lora).items()
    }


def load_initial_lora(lora: StyleLora, data: bytes) -> None:
    """Copy a LoRA into a fresh style, which then has the same effect, whatever its alpha.

    Layers missing in the file stay fresh; their number is logged.

    Args:
        data: the bytes of an ``InitialLora``.

    Raises:
        InvalidLoraFile: the rank differs, the run's alpha is too small, or the file has layers or
            magnitudes that the run does not train; the message names the option to change.
    """
    own = _by_name(lora)
    weights = decode_lora(data)[0]
    missing = sorted(weights.keys() - own.keys())
    if missing:
        count, (model, path) = len(missing), missing[0]
        option = "train_text_encoder" if model == TEXT_ENCODER else "lora_targets"
        raise InvalidLoraFile(
            f"network_weights has {count} layers that this run does not train (first: "
            f"{model}.{path}): set {option} as in the training of that LoRA"
        )
    for name, given in weights.items():
        label, matrices = ".".join(name), own[name]
        if given.rank != lora.rank:
            raise InvalidLoraFile(
                f"network_weights has rank {given.rank} and this run {lora.rank}: set rank to "
                f"{given.rank}, or dim_from_weights"
            )
        down, up = _as(given.down, matrices.down), _as(given.up, matrices.up)
        if down is None or up is None:
            raise InvalidLoraFile(
                f"network_weights does not fit the base model: {label} has shapes "
                f"{tuple(given.up.shape)} and {tuple(given.down.shape)}, not "
                f"{tuple(matrices.up.shape)} and {tuple(matrices.down.shape)}"
            )
        if (given.magnitude is None) != (matrices.magnitude is None) or given.per_input:
            raise InvalidLoraFile(
                "network_weights is DoRA with magnitudes per input; give magnitudes per output"
                if given.per_input
                else "set use_dora as in the training of the LoRA in network_weights"
            )
        up = up.float() * (given.alpha / given.rank) / (lora.alpha / lora.rank)
        if not up.abs().max() <= torch.finfo(torch.float16).max:  # the type in the style's file
            raise InvalidLoraFile("alpha is too small to continue network_weights: raise it")
        matrices.down.copy_(down)
        matrices.up.copy_(up)
        if given.magnitude is not None and matrices.magnitude is not None:
            matrices.magnitude.copy_(given.magnitude)
    fresh = len(own) - len(weights)
    if fresh:
        log.warning(
            "network_weights lacks %d of %d layers: these start untrained", fresh, len(own)
        )


def _as(given: torch.Tensor, own: torch.Tensor) -> torch.Tensor | None:
    """The tensor in the other's shape, if only dimensions of 1 differ: some programs store the
    projections around attention as linear layers, others as 1 x 1 convolutions."""
    if given.squeeze().shape != own.squeeze().shape:
        return None
    return given.reshape(own.shape)


def _by_name(lora: StyleLora) -> dict[LayerName, LoraMatrices]:
    in_text = {(TEXT_ENCODER, text_path(path)): own for path, own in lora.text_encoder.items()}
    return {(UNET, path): own for path, own in lora.unet.items()} | in_text
