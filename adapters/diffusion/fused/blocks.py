"""Fused replacements for blocks of diffusers' UNet. They compute the same and round less often.

Each class inherits the diffusers block that it replaces, and shares its layers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import (
    Transformer2DModel,
    Transformer2DModelOutput,
)
from torch.nn import functional

from adapters.diffusion.fused.operations import added, gated, group_norm, layer_norm
from adapters.diffusion.lora_layers import project, stand_in

_BLOCKS = {
    *("CrossAttnDownBlock2D", "DownBlock2D", "UNetMidBlock2DCrossAttn"),
    *("CrossAttnUpBlock2D", "UpBlock2D"),
}
_SETTINGS = {
    "act_fn": "silu",
    "attention_type": "default",
    "cross_attention_norm": None,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "use_linear_projection": False,
}
"""The settings that the fused blocks support: those of Stable Diffusion 1.5."""


def with_fused_blocks(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet with fused blocks on the weights of ``unet``, which is not changed.

    If ``unet`` has other blocks or settings than Stable Diffusion 1.5, returns ``unet`` itself.
    """
    config = unet.config
    kinds = {*config["down_block_types"], config["mid_block_type"], *config["up_block_types"]}
    if not kinds <= _BLOCKS or any(config[name] != value for name, value in _SETTINGS.items()):
        return unet
    fused = sharing_weights(unet)
    for parent in list(fused.modules()):
        for name, child in parent.named_children():
            if type(child) is Attention:
                child.set_processor(FusedAttention())
            elif type(child) is ResnetBlock2D:
                setattr(parent, name, stand_in(FusedResnetBlock, child))
            elif type(child) is Transformer2DModel:
                setattr(parent, name, stand_in(FusedTransformer, child))
            elif type(child) is BasicTransformerBlock:
                setattr(parent, name, stand_in(FusedTransformerBlock, child))
            elif type(child) is GEGLU:
                setattr(parent, name, stand_in(FusedGEGLU, child))
    fused.conv_norm_out = stand_in(FusedGroupNormSiLU, fused.conv_norm_out)
    fused.conv_act = torch.nn.Identity()
    return fused


def sharing_weights(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of the UNet's modules, on the same parameters and buffers."""
    tensors = [*unet.parameters(), *unet.buffers()]
    return copy.deepcopy(unet, {id(tensor): tensor for tensor in tensors})


class FusedResnetBlock(ResnetBlock2D):  # type: ignore[misc] # untyped
    """Biases are added where the feature map is read anyway: the first convolution's with the
    timestep's shift before the norm, the second one's in the sum with the shortcut."""

    def forward(self, x: torch.Tensor, temb: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """For (n, c, h, w) and (n, width). With LoRA on its layers, diffusers' own forward."""
        convs = (self.conv1, self.conv2, self.conv_shortcut)
        if not _are_frozen(self.time_emb_proj, *filter(None, convs)):
            y: torch.Tensor = super().forward(x, temb)
            return y
        shift = functional.linear(
            functional.silu(temb),
            self.time_emb_proj.weight,
            self.time_emb_proj.bias + self.conv1.bias,
        )
        h, x = group_norm(x, self.norm1, activated=True)
        h = functional.conv2d(h, self.conv1.weight, padding=1)
        h = group_norm(h, self.norm2, shift=shift, activated=True)[0]
        h = functional.conv2d(h, self.conv2.weight, padding=1)
        bias = self.conv2.bias
        if self.conv_shortcut is not None:
            x = _from_tokens(_pointwise(_tokens(x), self.conv_shortcut.weight), x)
            if self.conv_shortcut.bias is not None:
                bias = bias + self.conv_shortcut.bias
        return added(h, x, bias)


class FusedTransformer(Transformer2DModel):  # type: ignore[misc] # untyped
    """Computes 1 x 1 convolutions as products over tokens, which need no copy in channels last."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        *_: Any,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
        **__: Any,
    ) -> tuple[torch.Tensor] | Transformer2DModelOutput:
        """For (n, c, h, w) and the text's states. With LoRA on its layers, diffusers' forward."""
        assert attention_mask is None
        assert encoder_attention_mask is None
        into, out = self.proj_in, self.proj_out
        if not _are_frozen(into, out):
            y: tuple[torch.Tensor] | Transformer2DModelOutput = super().forward(
                hidden_states, encoder_hidden_states, return_dict=return_dict
            )
            return y
        normal, x = group_norm(hidden_states, self.norm)
        tokens = _pointwise(_tokens(normal), into.weight, into.bias)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(
                    block, tokens, None, encoder_hidden_states
                )
            else:
                tokens = block(tokens, None, encoder_hidden_states)
        sample = added(_from_tokens(_pointwise(tokens, out.weight), x), x, out.bias)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


class FusedTransformerBlock(BasicTransformerBlock):  # type: ignore[misc] # untyped
    """Computes each residual sum and the norm after it in one pass."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> torch.Tensor:
        """For (n, tokens, width) and the text's states."""
        assert attention_mask is None
        normal, x = layer_norm(hidden_states, self.norm1)
        normal, x = layer_norm(x, self.norm2, plus=self.attn1(normal))
        of_text = self.attn2(normal, encoder_hidden_states=encoder_hidden_states)
        normal, x = layer_norm(x, self.norm3, plus=of_text)
        last: torch.Tensor = x + self.ff(normal)
        return last


class FusedAttention:
    """A diffusers attention processor that computes projections of the same input together
    (``project``)."""

    def __call__(
        self,
        attention: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """For (n, tokens, width), and the text's states in cross attention."""
        assert attention_mask is None
        x, states = hidden_states, encoder_hidden_states
        keys_values = (attention.to_k, attention.to_v)
        if attention.is_cross_attention:
            of_states = project(x if states is None else states, keys_values)
            projected = [attention.to_q(x), *of_states]
        else:
            assert states is None
            projected = list(project(x, (attention.to_q, *keys_values)))
        q, k, v = (y.view(*y.shape[:2], attention.heads, -1).transpose(1, 2) for y in projected)
        heads = functional.scaled_dot_product_attention(q, k, v)
        y: torch.Tensor = attention.to_out[0](heads.transpose(1, 2).flatten(2))
        return y


class FusedGEGLU(GEGLU):  # type: ignore[misc] # untyped
    """Computes the gate of the feed-forward layer in one pass."""

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """For (n, tokens, width)."""
        return gated(self.proj(x))


class FusedGroupNormSiLU(torch.nn.GroupNorm):
    """The UNet's last norm and the activation after it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """For (n, c, h, w)."""
        return group_norm(x, self, activated=True)[0]


def _are_frozen(*layers: torch.nn.Module) -> bool:
    """Whether none of the layers carries LoRA."""
    return all(type(layer) in (torch.nn.Conv2d, torch.nn.Linear) for layer in layers)


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """(n, c, h, w) as (n, h * w, c): a view if the channels are innermost."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _from_tokens(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(n, h * w, c) as (n, c, h, w), with height and width of ``like``."""
    n, _, h, w = like.shape
    return tokens.view(n, h, w, -1).permute(0, 3, 1, 2)


def _pointwise(
    tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """A 1 x 1 convolution, (k, c, 1, 1), applied to every token."""
    return functional.linear(tokens, weight.flatten(1), bias)
