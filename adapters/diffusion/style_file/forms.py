"""The forms in which programs keep a LoRA, and the way from each to each.

kohya: ``lora_unet_<path with _>.lora_down.weight``, ``.lora_up.weight``, ``.alpha`` (a scalar),
and with DoRA ``.dora_scale``, (outputs, 1). Read by AUTOMATIC1111, ComfyUI and diffusers, the
last without ``dora_scale``.

diffusers: ``unet.<path>.lora_A.weight``, ``.lora_B.weight``, ``.lora_magnitude_vector``; ranks and
alphas as JSON in the metadata, under ``lora_adapter_metadata``.

peft: a folder for each model, ``adapter_config.json`` and ``adapter_model.safetensors`` with
``base_model.model.<path>.lora_A.weight`` and its like; a text encoder's path as transformers 5
has it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adapters.diffusion.tensor_file import body_of, encode
from domain.errors import UserError

Tensors = dict[str, torch.Tensor]

UNET, TEXT_ENCODER = "unet", "text_encoder"
DIFFUSERS_METADATA = "lora_adapter_metadata"
_KOHYA = {UNET: "lora_unet_", TEXT_ENCODER: "lora_te_"}
_PEFT = "base_model.model."
_WORDS = re.compile(
    r"down_blocks|up_blocks|mid_block|transformer_blocks|to_(?:q|k|v|out)|proj_(?:in|out)|"
    r"conv_(?:in|out|shortcut)|time_emb_proj|time_embedding|linear_[12]|"
    r"text_model|self_attn|[qkv]_proj|out_proj|[a-z0-9]+"
)
"""The parts of a layer's path in Stable Diffusion 1.5; only those with ``_`` need naming."""


class StyleFileInvalid(UserError, ValueError):
    """The tensors are not a LoRA in a form that is known."""


@dataclass(frozen=True)
class LayerWeights:
    """One layer's adapter."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    """The layer adds ``alpha / rank * up @ down``."""
    magnitude: torch.Tensor | None = None
    """DoRA's, in PEFT's shape: (outputs,); of a convolution (1, outputs, 1, 1)."""

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


Style = Mapping[tuple[str, str], LayerWeights]
"""A LoRA, by model (``unet``, ``text_encoder``) and the layer's path in it."""


def text_path(module: str) -> str:
    """A text encoder's layer as files name it; transformers 5 has no ``text_model.`` before."""
    return "text_model." + module.removeprefix("text_model.")


def to_kohya(style: Style) -> Tensors:
    """The tensors in kohya's form."""
    tensors: Tensors = {}
    for (model, path), layer in style.items():
        key = _KOHYA[model] + path.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = layer.down
        tensors[f"{key}.lora_up.weight"] = layer.up
        tensors[f"{key}.alpha"] = torch.tensor(layer.alpha)
        if layer.magnitude is not None:
            shape = (-1, *[1] * (layer.down.ndim - 1))
            tensors[f"{key}.dora_scale"] = layer.magnitude.reshape(shape)
    return tensors


def from_kohya(tensors: Mapping[str, torch.Tensor]) -> Style:
    """The LoRA that the tensors hold.

    Raises:
        StyleFileInvalid: a key is missing, or is none of these.
    """
    by_layer: dict[tuple[str, str], Tensors] = {}
    for name, tensor in tensors.items():
        stem, _, part = name.partition(".")
        by_layer.setdefault(_kohya_layer(stem), {})[part] = tensor
    style = {}
    for layer, parts in by_layer.items():
        down, up = _pair(layer, parts, "lora_down.weight", "lora_up.weight")
        alpha = parts.pop("alpha", None)
        magnitude = parts.pop("dora_scale", None)
        _nothing_left(layer, parts)
        if magnitude is not None:
            magnitude = magnitude.reshape(_magnitude_shape(down, up))
        style[layer] = LayerWeights(
            down, up, float(down.shape[0] if alpha is None else alpha), magnitude
        )
    return style


def to_diffusers(style: Style) -> tuple[Tensors, dict[str, str]]:
    """The tensors in diffusers' form, and what its metadata says of ranks and alphas."""
    tensors: Tensors = {}
    for (model, path), layer in style.items():
        tensors |= _matrices(f"{model}.{path}", layer)
    config = {
        f"{model}.{name}": value
        for model in dict.fromkeys(model for model, _ in style)
        for name, value in peft_config(style, model).items()
    }
    return tensors, {DIFFUSERS_METADATA: json.dumps(config, sort_keys=True)}


def from_diffusers(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Style:
    """The LoRA that the tensors hold. Without its metadata every alpha is the rank.

    Raises:
        StyleFileInvalid: a key is missing, or is none of these.
    """
    config = json.loads(metadata.get(DIFFUSERS_METADATA, "{}"))
    style: dict[tuple[str, str], LayerWeights] = {}
    for model in (UNET, TEXT_ENCODER):
        prefix = f"{model}."
        own = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        settings = {
            name.removeprefix(prefix): value
            for name, value in config.items()
            if name.startswith(prefix)
        }
        style |= _from_matrices(model, own, settings)
    if len(tensors) != sum(2 + (layer.magnitude is not None) for layer in style.values()):
        raise StyleFileInvalid("it has keys of neither unet nor text_encoder")
    return style


def to_peft(style: Style, model: str) -> Tensors:
    """The tensors of one model's ``adapter_model.safetensors``."""
    tensors: Tensors = {}
    for (owner, path), layer in style.items():
        if owner == model:
            tensors |= _matrices(f"{_PEFT}{_bare(path)}", layer)
    return tensors


def from_peft(model: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Style:
    """The LoRA that one model's folder holds.

    Raises:
        StyleFileInvalid: a key is missing, or is none of these.
    """
    return _from_matrices(
        model, {name.removeprefix(_PEFT): tensor for name, tensor in tensors.items()}, config
    )


def peft_config(style: Style, model: str) -> dict[str, Any]:
    """PEFT's ``LoraConfig`` for one model, as JSON values: only what it does not assume."""
    layers = {_bare(path): layer for (owner, path), layer in style.items() if owner == model}
    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    alpha = Counter(layer.alpha for layer in layers.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(layers),
        "rank_pattern": {p: layer.rank for p, layer in layers.items() if layer.rank != rank},
        "alpha_pattern": {p: layer.alpha for p, layer in layers.items() if layer.alpha != alpha},
        "use_dora": any(layer.magnitude is not None for layer in layers.values()),
    }


def write_style(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A file with the hashes of its own tensors: as ModelSpec and as AUTOMATIC1111 want them."""
    digest = hashlib.sha256(body_of(encode(tensors, {}))).hexdigest()
    hashes = {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    return encode(tensors, {**metadata, **hashes})


def _matrices(prefix: str, layer: LayerWeights) -> Tensors:
    tensors = {f"{prefix}.lora_A.weight": layer.down, f"{prefix}.lora_B.weight": layer.up}
    if layer.magnitude is not None:
        tensors[f"{prefix}.lora_magnitude_vector"] = layer.magnitude
    return tensors


def _from_matrices(
    model: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[tuple[str, str], LayerWeights]:
    by_path: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        path, found, part = name.rpartition(".lora_")
        if not found:
            raise StyleFileInvalid(f"{name} is no part of a LoRA")
        by_path.setdefault(path, {})[part] = tensor
    style = {}
    for found_path, parts in by_path.items():
        path = _bare(found_path)
        layer = (model, text_path(path) if model == TEXT_ENCODER else path)
        down, up = _pair(layer, parts, "A.weight", "B.weight")
        magnitude = parts.pop("magnitude_vector", None)
        _nothing_left(layer, parts)
        alpha = _alpha(config, (found_path, path), down.shape[0])
        if config.get("use_rslora"):
            alpha *= down.shape[0] ** 0.5
        style[layer] = LayerWeights(down, up, alpha, magnitude)
    return style


def _alpha(config: Mapping[str, Any], names: Sequence[str], rank: int) -> float:
    """The alpha of the layer that has these names: ``alpha_pattern``'s keys are the ends of
    names, and regular expressions, of which the first that matches counts, as in PEFT.
    """
    if patterns := config.get("alpha_pattern"):
        from peft.utils.other import get_pattern_key

        for name in names:
            if (key := get_pattern_key(patterns, name)) in patterns:
                return float(patterns[key])
    return float(config.get("lora_alpha", rank))


def _bare(path: str) -> str:
    """The layer's path in the model of transformers 5; as the end of a name it serves 4, too."""
    return path.removeprefix("text_model.")


def _kohya_layer(stem: str) -> tuple[str, str]:
    for model, prefix in _KOHYA.items():
        if stem.startswith(prefix):
            words = _WORDS.findall(stem.removeprefix(prefix))
            if prefix + "_".join(words) == stem:
                return model, ".".join(words)
    raise StyleFileInvalid(f"{stem} is no layer of Stable Diffusion 1.5 in kohya's form")


def _pair(
    layer: tuple[str, str], parts: Tensors, down: str, up: str
) -> tuple[torch.Tensor, torch.Tensor]:
    if down not in parts or up not in parts:
        raise StyleFileInvalid(f"{'.'.join(layer)} lacks {down if down not in parts else up}")
    return parts.pop(down), parts.pop(up)


def _nothing_left(layer: tuple[str, str], parts: Tensors) -> None:
    if parts:
        raise StyleFileInvalid(f"{'.'.join(layer)} has {min(parts)}, which is no part of a LoRA")


def _magnitude_shape(down: torch.Tensor, up: torch.Tensor) -> tuple[int, ...]:
    return (up.shape[0],) if down.ndim == 2 else (1, up.shape[0], 1, 1)
