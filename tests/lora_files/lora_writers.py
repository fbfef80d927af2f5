"""LoRA tensors as other trainers name them, written from their documentation and sources.

This module is independent of the code that reads them. Each function takes, for every layer, the
pair ``(up, down)`` of a LoRA whose scale is ``alpha / rank``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

Pairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""LoRA pairs by the layer's path in diffusers' UNet, or in its text encoder (``text_model``)."""
Tensors = dict[str, torch.Tensor]

UNET_LAYERS = {
    "down_blocks.0.attentions.0.proj_in": (32, 32, 1),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (32, 32, None),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (32, 32, None),
    "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k": (64, 48, None),
    "down_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj": (512, 64, None),
    "down_blocks.1.attentions.1.transformer_blocks.0.ff.net.2": (64, 256, None),
    "down_blocks.0.downsamplers.0.conv": (32, 32, 3),
    "mid_block.resnets.1.conv1": (64, 64, 3),
    "mid_block.resnets.1.time_emb_proj": (64, 128, None),
    "up_blocks.2.resnets.0.conv_shortcut": (32, 64, 1),
    "up_blocks.2.upsamplers.0.conv": (32, 32, 3),
}
"""Outputs, inputs and kernel size of layers of every kind."""
TEXT_LAYERS = {
    "text_model.encoder.layers.0.self_attn.q_proj": (64, 64, None),
    "text_model.encoder.layers.0.self_attn.out_proj": (64, 64, None),
    "text_model.encoder.layers.11.mlp.fc1": (256, 64, None),
}
ATTENTION = ".to_"


def random_pairs(
    layers: Mapping[str, tuple[int, int, int | None]], rank: int, conv_rank: int | None = None
) -> Pairs:
    """Random matrices; convolutions with a larger kernel have their own rank (conv_dim)."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    pairs = {}
    for path, (outputs, inputs, kernel) in layers.items():
        own = conv_rank if conv_rank and kernel == 3 else rank
        if kernel is None:
            pairs[path] = draw(outputs, own), draw(own, inputs)
        else:
            pairs[path] = draw(outputs, own, 1, 1), draw(own, inputs, kernel, kernel)
    return pairs


def delta(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The weight delta of the pair at scale 1."""
    product = up.flatten(1) @ down.flatten(1)
    return product.reshape(up.shape[0], *down.shape[1:])


def sd_scripts(pairs: Pairs, alpha: float, conv_alpha: float | None = None) -> Tensors:
    """kohya-ss/sd-scripts ``networks/lora.py``; OneTrainer and LyCORIS use the same names."""
    tensors: Tensors = {}
    for path, (up, down) in pairs.items():
        model = "te" if path.startswith("text_model") else "unet"
        name = f"lora_{model}_" + path.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up
        own = conv_alpha if conv_alpha and down.shape[-1] == 3 else alpha
        tensors[f"{name}.alpha"] = torch.tensor(own)
    return tensors


def onetrainer_dora(weights: Tensors, pairs: Pairs, alpha: float) -> Tensors:
    """OneTrainer ``LoRAModule.py`` ``DoRAModule``, LyCORIS with ``wd_on_output=False``: the norm
    of each input's column, shaped (1, inputs, ...)."""
    tensors = sd_scripts(pairs, alpha)
    for path, weight in weights.items():
        columns = weight.transpose(0, 1).reshape(weight.shape[1], -1).norm(dim=1, keepdim=True)
        scale = columns.reshape(weight.shape[1], *[1] * (weight.ndim - 1)).transpose(0, 1)
        tensors["lora_unet_" + path.replace(".", "_") + ".dora_scale"] = scale
    return tensors


def lycoris_tucker(pairs: Pairs, alpha: float) -> tuple[Tensors, Tensors]:
    """LyCORIS ``LoConModule`` with ``use_tucker``: a core of the kernel's size between two
    1 x 1 convolutions. Returns the file and each convolution's delta at scale 1."""
    tensors, deltas = sd_scripts(pairs, alpha), {}
    for path, (up, down) in pairs.items():
        if down.shape[-1] != 3:
            continue
        rank = down.shape[0]
        generator = torch.Generator().manual_seed(len(path))
        mid = torch.randn(rank, rank, 3, 3, generator=generator)
        narrow = down[:, :, :1, :1]
        name = "lora_unet_" + path.replace(".", "_")
        tensors[f"{name}.lora_mid.weight"] = mid
        tensors[f"{name}.lora_down.weight"] = narrow
        wa, wb = up.flatten(1).T, narrow.flatten(1)
        deltas[path] = torch.einsum("ijkl,jr,ip->prkl", mid, wb, wa)
    return tensors, deltas


def diffusers_examples(pairs: Pairs) -> Tensors:
    """``train_text_to_image_lora.py`` and similar, through ``convert_state_dict_to_diffusers``:
    attention in the old style, all other layers in PEFT's; the text encoder's attention as
    ``lora_linear_layer``."""
    tensors: Tensors = {}
    for path, (up, down) in pairs.items():
        if path.startswith("text_model"):
            linear = "self_attn" in path
            names = ("lora_linear_layer.down", "lora_linear_layer.up")
            down_name, up_name = names if linear else ("lora_A", "lora_B")
            name = f"text_encoder.{path}"
        else:
            down_name, up_name = "lora_A", "lora_B"
            if ATTENTION in path:
                down_name, up_name = "lora.down", "lora.up"
            name = f"unet.{path}"
        tensors[f"{name}.{down_name}.weight"] = down
        tensors[f"{name}.{up_name}.weight"] = up
    return tensors


def diffusers_attention_processors(pairs: Pairs, prefix: str = "unet.") -> Tensors:
    """diffusers up to 0.20, ``LoRAAttnProcessor``: ``.processor.to_q_lora.down.weight``, and
    ``to_out_lora`` for ``to_out.0``; before 0.15 without ``unet.``. In these versions the text
    encoder's projections had the UNet's names."""
    tensors: Tensors = {}
    for path, (up, down) in pairs.items():
        if path.startswith("text_model"):
            parent, _, last = path.rpartition(".")
            name = f"text_encoder.{parent}.to_{last.removesuffix('_proj')}_lora"
        else:
            parent, _, last = path.removesuffix(".0").rpartition(".")
            name = f"{prefix}{parent}.processor.{last}_lora"
        tensors[f"{name}.down.weight"] = down
        tensors[f"{name}.up.weight"] = up
    return tensors


def peft_folder(pairs: Pairs) -> Tensors:
    """``get_peft_model(unet).save_pretrained``: keys without the adapter's name."""
    tensors: Tensors = {}
    for path, (up, down) in pairs.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = down
        tensors[f"base_model.model.{path}.lora_B.weight"] = up
    return tensors
