"""diffusers' keys: ``unet.<path>.lora_A.weight``, ``.lora_B.weight``, ``.lora_magnitude_vector``.

Ranks and alphas are JSON in the metadata, under ``lora_adapter_metadata``. Older spellings are
also read: ``.lora.down.weight`` and ``.lora_linear_layer.down.weight`` (of diffusers' training
examples); ``.processor.to_q_lora.down.weight`` with ``to_out_lora`` (up to 0.17), also
without ``unet.``, and with ``to_q_lora`` for the text encoder's ``q_proj``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from adapters.lora_files.layer_parts import Part, assemble
from adapters.lora_files.lora_formats import (
    TEXT_ENCODER,
    UNET,
    InvalidLoraFile,
    LayerName,
    LayerWeights,
    LoraFormat,
    LoraWeights,
    Tensors,
    require_output_magnitudes,
    text_path,
    uses_dora,
)

DIFFUSERS_METADATA = "lora_adapter_metadata"
_SPELLINGS = [
    re.compile(r"(?P<path>.+)\.lora_(?P<part>A|B)(?:\.[^.]+)?\.weight"),
    re.compile(r"(?P<path>.+)\.lora_(?P<part>magnitude_vector)(?:\.[^.]+){0,2}"),
    re.compile(r"(?P<path>.+)\.lora(?:_linear_layer)?\.(?P<part>down|up)\.weight"),
    re.compile(r"(?P<path>.+)_lora\.(?P<part>down|up)\.weight"),
    re.compile(r"(?P<path>.+?)(?:[._]lora)?\.(?P<part>alpha)"),
]
_PARTS = {
    "A": Part.DOWN,
    "down": Part.DOWN,
    "B": Part.UP,
    "up": Part.UP,
    "alpha": Part.ALPHA,
    "magnitude_vector": Part.MAGNITUDE,
}
_OLD_NAMES_OF_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_MAX_REPEATS = 2
"""Most quantifiers of a pattern for names: the time of a match grows with their number."""
_UNET_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")


def to_diffusers(weights: LoraWeights) -> tuple[Tensors, dict[str, str]]:
    """The tensors in diffusers' format, and the metadata with their ranks and alphas.

    Raises:
        InvalidLoraFile: DoRA's magnitudes are per input.
    """
    require_output_magnitudes(weights, LoraFormat.DIFFUSERS)
    tensors: Tensors = {}
    for (model, path), layer in weights.items():
        # transformers drops a text encoder's magnitudes that do not end in ``.weight``.
        suffix = ".weight" if model == TEXT_ENCODER else ""
        tensors |= module_tensors(f"{model}.{path}", layer, suffix)
    config = {
        f"{model}.{name}": value
        for model in dict.fromkeys(model for model, _ in weights)
        for name, value in lora_config(weights, model).items()
    }
    return tensors, {DIFFUSERS_METADATA: json.dumps(config, sort_keys=True)}


def from_diffusers(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> LoraWeights:
    """The LoRA that the tensors contain. Without metadata, alpha equals the rank.

    Raises:
        InvalidLoraFile: a key is missing or unknown, or a layer's tensors do not fit together.
    """
    config = json_object(metadata.get(DIFFUSERS_METADATA, "{}"), DIFFUSERS_METADATA)
    by_model: dict[str, Tensors] = {UNET: {}, TEXT_ENCODER: {}}
    for key, tensor in tensors.items():
        model, _, name = key.partition(".")
        if key.startswith(_UNET_BLOCKS):
            model, name = UNET, key
        if model not in by_model:
            raise InvalidLoraFile(f"{key} belongs neither to unet nor to text_encoder")
        by_model[model][name] = tensor
    weights: LoraWeights = {}
    for model, own in by_model.items():
        settings = {
            name.removeprefix(f"{model}."): value
            for name, value in config.items()
            if name.startswith(f"{model}.")
        }
        weights = {**weights, **from_modules(model, own, settings)}
    return weights


def module_tensors(prefix: str, layer: LayerWeights, magnitude_suffix: str = "") -> Tensors:
    """One layer's tensors under PEFT's names, which diffusers uses, too."""
    tensors = {f"{prefix}.lora_A.weight": layer.down, f"{prefix}.lora_B.weight": layer.up}
    if layer.magnitude is not None:
        shape = (-1,) if layer.down.ndim == 2 else (1, -1, 1, 1)
        name = f"{prefix}.lora_magnitude_vector{magnitude_suffix}"
        tensors[name] = layer.magnitude.reshape(shape)
    return tensors


def from_modules(
    model: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> LoraWeights:
    """One model's LoRA from tensors named after its modules.

    Args:
        config: PEFT's ``LoraConfig`` as JSON values; only the scales are used.

    Raises:
        InvalidLoraFile: a key is missing or unknown, or a layer's tensors do not fit together.
    """
    layers: dict[LayerName, dict[Part, torch.Tensor]] = {}
    found: dict[LayerName, str] = {}
    for key, tensor in tensors.items():
        path, part = _parse(key)
        name = (model, _current_path(model, path))
        if part in layers.setdefault(name, {}):
            raise InvalidLoraFile(f"{model}.{key} is the second {part} of its layer")
        layers[name][part] = tensor
        found[name] = path

    def default_alpha(name: LayerName, rank: int) -> float:
        alpha = _configured_alpha(config, (found[name], bare_path(found[name])), rank)
        return alpha * rank**0.5 if config.get("use_rslora") else alpha

    return assemble(layers, default_alpha, magnitude_shape_tells_axis=False)


def lora_config(weights: LoraWeights, model: str) -> dict[str, Any]:
    """PEFT's ``LoraConfig`` for one model, as JSON values: only fields that every PEFT since 0.7
    knows, and ``use_dora`` (PEFT 0.9) if needed."""
    layers = {bare_path(path): layer for (owner, path), layer in weights.items() if owner == model}
    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    alpha = Counter(layer.alpha for layer in layers.values()).most_common(1)[0][0]
    config = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(layers),
        "rank_pattern": {p: layer.rank for p, layer in layers.items() if layer.rank != rank},
        "alpha_pattern": {p: layer.alpha for p, layer in layers.items() if layer.alpha != alpha},
    }
    return {**config, "use_dora": True} if uses_dora(weights) else config


def json_object(text: str, name: str) -> dict[str, Any]:
    """The JSON object in ``text``.

    Args:
        name: names the text in the error.

    Raises:
        InvalidLoraFile: the text is not a JSON object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidLoraFile(f"its {name} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InvalidLoraFile(f"its {name} is not a JSON object")
    return value


def bare_path(path: str) -> str:
    """The layer's path as transformers 5 names it: the end of the path in transformers 4."""
    return path.removeprefix("text_model.")


def _parse(key: str) -> tuple[str, Part]:
    for spelling in _SPELLINGS:
        if match := spelling.fullmatch(key):
            return match["path"].replace(".processor.", "."), _PARTS[match["part"]]
    raise InvalidLoraFile(f"{key} is not part of a LoRA")


def _current_path(model: str, path: str) -> str:
    parent, _, last = path.rpartition(".")
    if model == UNET:
        return f"{path}.0" if last == "to_out" else path
    return text_path(f"{parent}.{_OLD_NAMES_OF_TEXT.get(last, last)}")


def _configured_alpha(config: Mapping[str, Any], names: Sequence[str], rank: int) -> float:
    """The alpha of a layer that has these names. As in PEFT, the keys of ``alpha_pattern`` are
    regular expressions for the ends of names, and the first match counts.
    """
    try:
        patterns = dict(config.get("alpha_pattern") or {})
        for pattern in patterns:
            repeats = len(re.findall(r"[*+{]", pattern))
            if repeats > _MAX_REPEATS or re.search(r"\)[*+{]", pattern):
                raise ValueError(f"{pattern!r:.80} has too many repeats; write out the names")
        for name in names:
            for pattern, alpha in patterns.items():
                if re.match(rf"(.*\.)?({pattern})$", name):
                    return float(alpha)
        return float(config.get("lora_alpha", rank))
    except (TypeError, ValueError, AttributeError, OverflowError, re.error) as error:
        raise InvalidLoraFile(
            f"its alpha_pattern or lora_alpha cannot be used ({error})"
        ) from None
