"""Read the LoRA that a run starts from (kohya's ``network_weights``)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from adapters.lora_files.files import decode_lora, hashed, read_lora
from adapters.lora_files.kohya_format import to_kohya
from adapters.lora_files.lora_formats import InvalidLoraFile, LoraWeights
from domain.training_plan import InitialLora


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


def _initial(weights: LoraWeights) -> InitialLora:
    ranks = Counter(layer.rank for layer in weights.values())
    if len(ranks) > 1:
        named = ", ".join(f"{count} of rank {rank}" for rank, count in ranks.most_common())
        raise InvalidLoraFile(
            f"network_weights has layers of several ranks: {named}; give one of a single rank"
        )
    (rank,) = ranks
    alpha = Counter(layer.alpha for layer in weights.values()).most_common(1)[0][0]
    return InitialLora(hashed(to_kohya(weights), {}), rank, alpha)
