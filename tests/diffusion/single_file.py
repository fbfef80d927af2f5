"""Write a diffusers model in the layout of the original Stable Diffusion checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

import safetensors.torch
import torch

from adapters.diffusion.base.model import BaseModel

_RESNET_OF_UNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_TOP_OF_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION_OF_VAE = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def write_single_file(base: BaseModel, path: Path) -> Path:
    """Write the base as one ``.safetensors`` with ``model.diffusion_model.`` keys and similar."""
    layers = base.unet.config.layers_per_block
    blocks = len(base.vae.config.block_out_channels)
    tensors = {}
    for name, tensor in base.unet.state_dict().items():
        tensors[f"model.diffusion_model.{unet_key(name, layers)}"] = tensor
    for name, tensor in base.vae.state_dict().items():
        key = _vae_key(name, blocks)
        is_matrix = ".attn_1." in key and tensor.ndim == 2
        tensors[f"first_stage_model.{key}"] = tensor[..., None, None] if is_matrix else tensor
    for name, tensor in base.text_encoder.state_dict().items():
        bare = name.removeprefix("text_model.")
        tensors[f"cond_stage_model.transformer.text_model.{bare}"] = tensor
    positions = torch.arange(base.tokenizer.model_max_length)[None]
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = positions
    safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def unet_key(name: str, layers: int) -> str:
    """A UNet parameter's name in the original layout, for ``layers`` layers per block."""
    for ours, theirs in _TOP_OF_UNET.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, index, rest = found.groups()
        place = 1 if kind == "attentions" else 2 * int(index)
        return f"middle_block.{place}.{_inside(kind, rest)}"
    found = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    assert found is not None, name
    way, block, kind, index, rest = found.groups()
    if way == "down":
        place = 1 + int(block) * (layers + 1) + (layers if kind == "downsamplers" else int(index))
        if kind == "downsamplers":
            return f"input_blocks.{place}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{place}.{int(kind == 'attentions')}.{_inside(kind, rest)}"
    place = int(block) * (layers + 1) + (layers if kind == "upsamplers" else int(index))
    if kind == "upsamplers":
        # The upsampler follows the block's attention, which the first block does not have.
        return f"output_blocks.{place}.{1 if block == '0' else 2}.{rest}"
    return f"output_blocks.{place}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    part, _, parameter = rest.rpartition(".")
    return f"{_RESNET_OF_UNET[part]}.{parameter}"


def _vae_key(name: str, blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)",
        lambda found: (
            f"up.{blocks - 1 - int(found[1])}."
            + (f"block.{found[3]}" if found[2] == "resnets" else "upsample")
        ),
        name,
    )
    name = re.sub(
        r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name
    )
    if "mid_block.attentions.0." in name:
        head, _, rest = name.partition("mid_block.attentions.0.")
        part, _, parameter = rest.rpartition(".")
        return f"{head}mid.attn_1.{_ATTENTION_OF_VAE[part]}.{parameter}"
    return name
