"""The blocks of diffusers' denoiser, computed by the fused operations.

What they compute stays the same, rounded less often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

from adapters.diffusion.fused.operations import (
    added,
    gated,
    group_norm,
    group_norm_of,
    layer_norm_of,
)
from adapters.diffusion.lora_layers import project

Forward = Callable[..., Any]


@contextmanager
def fused(unet: UNet2DConditionModel) -> Iterator[None]:
    """While open, the denoiser's blocks are computed by the fused operations.

    Open after LoRA layers are installed: a block whose convolutions carry LoRA stays as it is.
    """
    rerouted: list[torch.nn.Module] = []

    def reroute(module: torch.nn.Module, forward: Forward) -> None:
        module.forward = forward
        rerouted.append(module)

    try:
        for module in unet.modules():
            if isinstance(module, ResnetBlock2D) and _plain_resnet(module):
                reroute(module, _resnet(module))
            elif isinstance(module, Transformer2DModel) and _plain_transformer(module):
                reroute(module, _transformer(module))
            elif isinstance(module, BasicTransformerBlock) and _plain_block(module):
                reroute(module, _block(module))
            elif isinstance(module, Attention) and _plain_attention(module):
                reroute(module, _attention(module))
            elif isinstance(module, GEGLU):
                reroute(module, _gated(module))
        if isinstance(unet.conv_norm_out, torch.nn.GroupNorm) and _is_silu(unet.conv_act):
            reroute(unet.conv_norm_out, _last_norm(unet.conv_norm_out))
            reroute(unet.conv_act, lambda x: x)
        yield
    finally:
        for module in rerouted:
            module.__dict__.pop("forward", None)


def _plain_resnet(block: ResnetBlock2D) -> bool:
    layers = [block.conv1, block.conv2, block.conv_shortcut, block.time_emb_proj]
    return (
        all(type(layer) in (torch.nn.Conv2d, torch.nn.Linear) for layer in layers if layer)
        and block.time_emb_proj is not None
        and block.time_embedding_norm == "default"
        and not block.skip_time_act
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1.0
        and block.dropout.p == 0.0
        and block.conv1.bias is not None
        and block.conv2.bias is not None
        and _is_silu(block.nonlinearity)
    )


def _resnet(block: ResnetBlock2D) -> Forward:
    """The first convolution's bias goes where the timestep's shift goes, before the norm; the
    second one's into the sum with the shortcut."""
    shift = block.time_emb_proj.bias + block.conv1.bias
    bias = block.conv2.bias
    if block.conv_shortcut is not None and block.conv_shortcut.bias is not None:
        bias = bias + block.conv_shortcut.bias

    def forward(x: torch.Tensor, temb: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        moved = torch.nn.functional.linear(
            torch.nn.functional.silu(temb), block.time_emb_proj.weight, shift
        )
        h, x = group_norm_of(x, block.norm1, activated=True)
        h = torch.nn.functional.conv2d(h, block.conv1.weight, padding=1)
        h = group_norm(h, block.norm2, shift=moved, activated=True)
        h = torch.nn.functional.conv2d(h, block.conv2.weight, padding=1)
        if block.conv_shortcut is not None:
            x = _from_tokens(_pointwise(_tokens(x), block.conv_shortcut.weight), x)
        return added(h, x, bias)

    return forward


def _plain_transformer(module: Transformer2DModel) -> bool:
    return (
        module.is_input_continuous
        and not module.use_linear_projection
        and type(module.proj_in) is torch.nn.Conv2d
        and type(module.proj_out) is torch.nn.Conv2d
    )


def _transformer(module: Transformer2DModel) -> Forward:
    into, out = module.proj_in, module.proj_out

    def forward(
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        *_: Any,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
        **__: Any,
    ) -> tuple[torch.Tensor] | Transformer2DModelOutput:
        assert attention_mask is None
        assert encoder_attention_mask is None
        normal, x = group_norm_of(hidden_states, module.norm)
        tokens = _pointwise(_tokens(normal), into.weight, into.bias)
        for block in module.transformer_blocks:
            if torch.is_grad_enabled() and module.gradient_checkpointing:
                tokens = module._gradient_checkpointing_func(
                    block, tokens, None, encoder_hidden_states
                )
            else:
                tokens = block(tokens, None, encoder_hidden_states)
        answer = added(_from_tokens(_pointwise(tokens, out.weight), x), x, out.bias)
        return Transformer2DModelOutput(sample=answer) if return_dict else (answer,)

    return forward


def _plain_block(block: BasicTransformerBlock) -> bool:
    return (
        block.norm_type == "layer_norm"
        and block.pos_embed is None
        and block.attn2 is not None
        and not block.only_cross_attention
        and not block.attn2.only_cross_attention
        and block._chunk_size is None
        and getattr(block, "fuser", None) is None
        and all(norm.bias is not None for norm in (block.norm1, block.norm2, block.norm3))
    )


def _block(block: BasicTransformerBlock) -> Forward:
    def forward(
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> torch.Tensor:
        assert attention_mask is None
        normal, x = layer_norm_of(hidden_states, block.norm1)
        normal, x = layer_norm_of(x, block.norm2, plus=block.attn1(normal))
        answer = block.attn2(normal, encoder_hidden_states=encoder_hidden_states)
        normal, x = layer_norm_of(x, block.norm3, plus=answer)
        last: torch.Tensor = x + block.ff(normal)
        return last

    return forward


def _plain_attention(module: Attention) -> bool:
    parts = ("spatial_norm", "group_norm", "norm_q", "norm_k")
    return (
        all(getattr(module, part, None) is None for part in parts)
        and not module.norm_cross
        and not module.residual_connection
        and module.rescale_output_factor == 1.0
        and module.to_out[1].p == 0.0
    )


def _attention(module: Attention) -> Forward:
    def forward(
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        assert attention_mask is None
        x, states = hidden_states, encoder_hidden_states
        if module.is_cross_attention:
            of_states = project(x if states is None else states, (module.to_k, module.to_v))
            projected = [module.to_q(x), *of_states]
        else:
            assert states is None
            projected = list(project(x, (module.to_q, module.to_k, module.to_v)))
        q, k, v = (y.view(*y.shape[:2], module.heads, -1).transpose(1, 2) for y in projected)
        heads = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        answer: torch.Tensor = module.to_out[0](heads.transpose(1, 2).flatten(2))
        return answer

    return forward


def _gated(module: GEGLU) -> Forward:
    return lambda x, *_, **__: gated(module.proj(x))


def _last_norm(norm: torch.nn.GroupNorm) -> Forward:
    return lambda x: group_norm(x, norm, activated=True)


def _is_silu(module: torch.nn.Module | None) -> bool:
    return isinstance(module, torch.nn.SiLU)


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """(n, c, h, w) as (n, h * w, c): a view where the channels lie innermost."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _from_tokens(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(n, h * w, c) as (n, c, h, w), of the same height and width as ``like``."""
    n, _, h, w = like.shape
    return tokens.view(n, h, w, -1).permute(0, 3, 1, 2)


def _pointwise(
    tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """A convolution of 1 x 1, (k, c, 1, 1), at every token."""
    return torch.nn.functional.linear(tokens, weight.flatten(1), bias)
