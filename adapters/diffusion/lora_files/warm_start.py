"""Start a run from an existing LoRA (kohya's ``network_weights``)."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import torch

from adapters.diffusion.lora_files.files import decode_lora, hashed, read_lora
from adapters.diffusion.lora_files.kohya_format import to_kohya
from adapters.diffusion.lora_files.lora_formats import (
    TEXT_ENCODER,
    UNET,
    InvalidLoraFile,
    LoraWeights,
    text_path,
)
from adapters.diffusion.lora_layers import StyleLora
from application.ports import InitialLora

log = logging.getLogger(__name__)


def initial_from_path(path: Path) -> InitialLora:
    """The LoRA in a file or folder of any format that ``--export`` reads.

    Raises:
        InvalidLoraFile: no LoRA found, or its layers differ in rank.
    """
    return _initial(read_lora(path)[0])


def initial_from_bytes(data: bytes) -> InitialLora:
    """The LoRA in one safetensors file.

    Raises:
        InvalidLoraFile: not a LoRA, or its layers differ in rank.
    """
    return _initial(decode_lora(data)[0])


def start_from(lora: StyleLora, data: bytes) -> None:
    """Copy a LoRA into a fresh style, which then has the same effect, whatever its alpha.

    Layers missing in the file stay fresh; their number is logged.

    Args:
        data: the bytes of an ``InitialLora``.

    Raises:
        InvalidLoraFile: the rank differs, or the file has layers or magnitudes that the run
            does not train; the message names them and the option that enables them.
    """
    own = {(UNET, path): matrices for path, matrices in lora.unet.items()}
    own |= {(TEXT_ENCODER, text_path(p)): matrices for p, matrices in lora.text_encoder.items()}
    weights = decode_lora(data)[0]
    missing = sorted(weights.keys() - own.keys())
    if missing:
        count, (model, path) = len(missing), missing[0]
        option = "train_text_encoder" if model == TEXT_ENCODER else "lora_targets"
        raise InvalidLoraFile(
            f"network_weights has {count} layers that this run does not train, the first "
            f"{model}.{path}: set {option} as for that LoRA"
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
                "network_weights is DoRA with magnitudes per input, which is not trained here"
                if given.per_input
                else "use_dora has to be the same as in the LoRA of network_weights"
            )
        matrices.down.copy_(down)
        matrices.up.copy_(up.float() * (given.alpha / given.rank) / (lora.alpha / lora.rank))
        if given.magnitude is not None and matrices.magnitude is not None:
            matrices.magnitude.copy_(given.magnitude)
    fresh = len(own) - len(weights)
    if fresh:
        log.warning("network_weights has no weights for %d of %d layers", fresh, len(own))


def _initial(weights: LoraWeights) -> InitialLora:
    ranks = Counter(layer.rank for layer in weights.values())
    if len(ranks) > 1:
        named = ", ".join(f"{count} of rank {rank}" for rank, count in ranks.most_common())
        raise InvalidLoraFile(f"network_weights has layers of several ranks: {named}")
    (rank,) = ranks
    alpha = Counter(layer.alpha for layer in weights.values()).most_common(1)[0][0]
    return InitialLora(hashed(to_kohya(weights), {}), rank, alpha)


def _as(given: torch.Tensor, own: torch.Tensor) -> torch.Tensor | None:
    """The tensor in the other's shape, if only dimensions of 1 differ: some programs store the
    projections around attention as linear layers, others as 1 x 1 convolutions."""
    if given.squeeze().shape != own.squeeze().shape:
        return None
    return given.reshape(own.shape)
