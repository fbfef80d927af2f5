"""PEFT's folder: ``adapter_config.json`` and ``adapter_model.safetensors`` for each model.

The UNet's folder is the LoRA's folder itself, as ``PeftModel.from_pretrained(unet, folder)``
expects; the text encoder's, if the LoRA has one, is its subfolder ``text_encoder``. Layers of the
text encoder are named as in transformers 5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import torch

from adapters.lora_files.diffusers_format import (
    bare_path,
    from_modules,
    lora_config,
    module_tensors,
)
from adapters.lora_files.lora_formats import (
    UNET,
    LoraFormat,
    LoraWeights,
    Tensors,
    require_output_magnitudes,
)

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def to_peft(weights: LoraWeights, base_model: str | None) -> dict[str, tuple[bytes, Tensors]]:
    """Configuration and tensors for each folder, "." or "text_encoder".

    Raises:
        InvalidLoraFile: DoRA's magnitudes are per input.
    """
    require_output_magnitudes(weights, LoraFormat.PEFT)
    folders = {}
    for model in dict.fromkeys(model for model, _ in weights):
        tensors: Tensors = {}
        for (owner, path), layer in weights.items():
            if owner == model:
                tensors |= module_tensors(f"{_PREFIX}{bare_path(path)}", layer)
        # Old versions of PEFT reject unknown fields, so write only what is needed.
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": base_model,
            "inference_mode": True,
            **lora_config(weights, model),
        }
        text = json.dumps(config, indent=2, sort_keys=True)
        folders["." if model == UNET else model] = (f"{text}\n".encode(), tensors)
    return folders


def from_peft(
    model: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> LoraWeights:
    """The LoRA in one model's folder.

    Raises:
        InvalidLoraFile: a key is missing or unknown, or a layer's tensors do not fit together.
    """
    own = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    return from_modules(model, own, config)


def peft_name(folder: str, file: str) -> str:
    """A file's path relative to the LoRA's folder, with ``/``."""
    return str(PurePosixPath(folder) / file)
