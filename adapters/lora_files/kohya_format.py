"""kohya's keys: ``lora_unet_<path with _>.lora_down.weight``, ``.lora_up.weight``, ``.alpha``.

Written by sd-scripts, LyCORIS (LoCon) and OneTrainer; read by AUTOMATIC1111, ComfyUI and
diffusers. DoRA adds ``.dora_scale``: (outputs, 1, ...), or (1, inputs, ...) if the columns of
the weight are normalised. diffusers ignores it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from adapters.lora_files.layer_parts import Part, assemble
from adapters.lora_files.lora_formats import (
    TEXT_ENCODER,
    UNET,
    InvalidLoraFile,
    LayerName,
    LayerWeights,
    LoraWeights,
    Tensors,
)

_PREFIXES = {UNET: "lora_unet_", TEXT_ENCODER: "lora_te_"}
_OTHER_METHODS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "boft_": "BOFT",
    "diff": "full weight differences",
    "w_norm": "trained norms",
    "b_norm": "trained norms",
    "on_input": "IA3",
    "a1.": "GLoRA",
}
"""Other LyCORIS methods than LoCon, by the beginning of the last part of their keys."""
_WORDS = re.compile(
    r"down_blocks|up_blocks|mid_block|transformer_blocks|to_(?:q|k|v|out)|proj_(?:in|out)|"
    r"conv_(?:in|out|shortcut)|time_emb_proj|time_embedding|linear_[12]|"
    r"text_model|self_attn|[qkv]_proj|out_proj|[a-z0-9]+"
)
"""Parts of layer paths in Stable Diffusion 1.5; only those that contain ``_`` need listing."""


def is_kohya(keys: Mapping[str, object]) -> bool:
    """Whether any key has one of kohya's prefixes."""
    return any(key.startswith(tuple(_PREFIXES.values())) for key in keys)


def to_kohya(weights: LoraWeights) -> Tensors:
    """The tensors in kohya's format."""
    tensors: Tensors = {}
    for (model, path), layer in weights.items():
        key = _PREFIXES[model] + path.replace(".", "_")
        tensors[f"{key}.{Part.DOWN}"] = layer.down
        tensors[f"{key}.{Part.UP}"] = layer.up
        tensors[f"{key}.{Part.ALPHA}"] = torch.tensor(layer.alpha)
        if layer.magnitude is not None:
            tensors[f"{key}.{Part.MAGNITUDE}"] = layer.magnitude.reshape(_magnitude_shape(layer))
    return tensors


def from_kohya(tensors: Mapping[str, torch.Tensor]) -> LoraWeights:
    """The LoRA that the tensors contain. A layer without an alpha gets its rank as alpha.

    Raises:
        InvalidLoraFile: a key is missing or unknown, or a layer's tensors do not fit together.
    """
    layers: dict[LayerName, dict[Part, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, part = _parse(key)
        layers.setdefault(name, {})[part] = tensor
    return assemble(layers, lambda _, rank: float(rank), magnitude_shape_tells_axis=True)


def _parse(key: str) -> tuple[LayerName, Part]:
    stem, _, part = key.partition(".")
    if stem == "bundle_emb":
        raise InvalidLoraFile(
            f"it carries embeddings of OneTrainer ({key}), which no other format can store; "
            "save it without bundled embeddings"
        )
    for beginning, method in _OTHER_METHODS.items():
        if part.startswith(beginning):
            raise InvalidLoraFile(f"it is {method} of LyCORIS ({key}), not a LoRA")
    if part not in set(Part):
        raise InvalidLoraFile(f"{key} is not part of a LoRA")
    return _layer_name(stem), Part(part)


def _layer_name(stem: str) -> LayerName:
    for model, prefix in _PREFIXES.items():
        if stem.startswith(prefix):
            words = _WORDS.findall(stem.removeprefix(prefix))
            if prefix + "_".join(words) == stem:
                return model, ".".join(words)
    raise InvalidLoraFile(f"{stem} is not a layer of Stable Diffusion 1.5 in kohya's format")


def _magnitude_shape(layer: LayerWeights) -> tuple[int, ...]:
    shape = [1] * layer.down.ndim
    shape[1 if layer.per_input else 0] = -1
    return tuple(shape)
