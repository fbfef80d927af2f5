"""How AUTOMATIC1111, ComfyUI and LyCORIS load a style file, reimplemented from docs/format.md.

This module is independent of the code that writes the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]

CLIP_LAYERS = ("mlp.fc1", "mlp.fc2", *(f"self_attn.{p}_proj" for p in ("k", "q", "v", "out")))
UNET, CLIP = "model.diffusion_model.", "cond_stage_model.transformer."


def comfy_names(ldm_of: Mapping[str, str], layers: int) -> dict[str, str]:
    """The key stems that ComfyUI looks for, and the weight for each.

    Args:
        ldm_of: the name in the original layout of each weight of diffusers' UNet.
        layers: of the text encoder.
    """
    names = {
        "lora_unet_" + name.removesuffix(".weight").replace(".", "_"): UNET + ldm
        for name, ldm in ldm_of.items()
        if name.endswith(".weight")
    }
    for name, ldm in ldm_of.items():
        if name.endswith(".weight"):  # diffusers' form, with the old attention keys
            stem = name.removesuffix(".weight").replace(".to_", ".processor.to_")
            names["unet." + stem.replace(".to_out.0", ".to_out")] = UNET + ldm
    for layer in range(layers):
        for part in CLIP_LAYERS:
            path = f"text_model.encoder.layers.{layer}.{part}"
            for stem in (f"lora_te_{path.replace('.', '_')}", f"text_encoder.{path}"):
                names[stem] = f"{CLIP}{path}.weight"
    return names


def comfy_patched(weights: Tensors, style: Tensors, names: Mapping[str, str]) -> Tensors:
    """The model's weights as ComfyUI patches them at strength 1; every key must match a weight."""
    patched, unread = dict(weights), set(style)
    for stem, name in names.items():
        if f"{stem}.lora_up.weight" not in style:
            continue
        up, down = style[f"{stem}.lora_up.weight"], style[f"{stem}.lora_down.weight"]
        unread -= {f"{stem}.lora_up.weight", f"{stem}.lora_down.weight", f"{stem}.alpha"}
        scale = style[f"{stem}.alpha"].item() / down.shape[0] if f"{stem}.alpha" in style else 1.0
        weight = weights[name].float()
        product = up.float().flatten(1) @ down.float().flatten(1)
        total = weight + scale * product.reshape(weight.shape)
        if (magnitudes := style.get(f"{stem}.dora_scale")) is not None:
            unread.remove(f"{stem}.dora_scale")
            total = comfy_decomposed(weight, total, magnitudes.float())
        patched[name] = total
    assert not unread, f"ComfyUI would say: lora key not loaded: {min(unread)}"
    return patched


def comfy_decomposed(
    base: torch.Tensor, total: torch.Tensor, magnitudes: torch.Tensor
) -> torch.Tensor:
    """DoRA in ComfyUI: per output it divides by the base's lengths, per input by the sum's."""
    if magnitudes.shape[0] == total.shape[0]:
        return total * magnitudes / lengths(base, axis=0)
    return total * magnitudes / lengths(total, axis=1)


def lycoris_decomposed(total: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """DoRA in LyCORIS if normalised per output: by the sum's lengths, as in the paper."""
    return total * magnitudes / lengths(total, axis=0)


def a1111_decomposed(total: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """DoRA in AUTOMATIC1111: per input, whatever the shape of the magnitudes."""
    return total * (magnitudes / lengths(total, axis=1))


def lengths(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """The norm over all other axes, in a shape that multiplies the weight."""
    others = [n for n in range(weight.ndim) if n != axis]
    norm: torch.Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return norm


def a1111_module(stem: str) -> str:
    """The module of the original layout that AUTOMATIC1111 maps a stem to, SD 1 only."""
    if found := re.fullmatch(r"lora_te_(text_model_encoder_layers_\d+_.+)", stem):
        return f"transformer_{found[1]}"
    inside = {
        **{"conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1"},
        "conv_shortcut": "skip_connection",
    }
    pattern = (
        r"lora_unet_(?:(down|up)_blocks_(\d+)|mid_block)_"
        r"(attentions|resnets|downsamplers|upsamplers)_(\d+)_(.+)"
    )
    found = re.fullmatch(pattern, stem)
    if found is None:
        return stem
    way, block, kind, index, rest = found.groups()
    place = int(index)
    if kind == "downsamplers":
        return f"diffusion_model_input_blocks_{3 * int(block) + 3}_0_op"
    if kind == "upsamplers":
        position = 2 if int(block) else 1
        return f"diffusion_model_output_blocks_{3 * int(block) + 2}_{position}_conv"
    rest = inside.get(rest, rest) if kind == "resnets" else rest
    second = int(kind == "attentions")
    if way is None:
        return f"diffusion_model_middle_block_{1 if second else 2 * place}_{rest}"
    if way == "down":
        return f"diffusion_model_input_blocks_{1 + 3 * int(block) + place}_{second}_{rest}"
    return f"diffusion_model_output_blocks_{3 * int(block) + place}_{second}_{rest}"


def a1111_metadata(file: bytes) -> dict[str, Any]:
    """Metadata as AUTOMATIC1111 reads it from the bytes: JSON objects become dictionaries."""
    length = int.from_bytes(file[:8], "little")
    header = file[8 : 8 + length]
    assert header.startswith(b'{"'), "AUTOMATIC1111 would say: is not a safetensors file"
    texts = json.loads(header)["__metadata__"]
    return {name: json.loads(text) if text[:1] == "{" else text for name, text in texts.items()}


def a1111_version(metadata: Mapping[str, object]) -> str:
    """The Stable Diffusion version that AUTOMATIC1111 assigns to the style."""
    if str(metadata.get("ss_base_model_version", "")).startswith("sdxl_"):
        return "SDXL"
    if metadata.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if metadata else "Unknown"
