"""Encode captions, long ones in chunks.

A chunk is one CLIP input: a begin token, 75 tokens, an end token. The states of several chunks are
joined as in kohya's trainer: the first begin, the 75 of each, the last end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from adapters.common.device_memory import on_device
from adapters.diffusion.base.model import BaseModel

CAPTIONS_AT_ONCE = 32
"""Captions per text encoder batch."""
DEFAULT_TOKENS = 75


def max_length(base: BaseModel, max_tokens: int) -> int:
    """Number of caption tokens that are encoded, including the begin and end tokens."""
    per_chunk: int = base.tokenizer.model_max_length - 2
    return max_tokens // DEFAULT_TOKENS * per_chunk + 2


def tokens_of(
    base: BaseModel, captions: Iterable[str], max_tokens: int = DEFAULT_TOKENS
) -> torch.Tensor:
    """Token ids, (captions, chunks, tokens) in int64, padded or cut to ``max_tokens``.

    For CLIP, a chunk has 77 tokens.
    """
    length = max_length(base, max_tokens)
    ids: torch.Tensor = base.tokenizer(
        list(captions),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    begin, end = ids[:, :1], ids[:, -1:]
    chunks = torch.split(ids[:, 1:-1], base.tokenizer.model_max_length - 2, dim=1)
    return torch.stack([torch.cat([begin, chunk, end], dim=1) for chunk in chunks], dim=1)


def text_states(text_encoder: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Last hidden states of the captions, (captions, 2 + chunks * 75, width).

    Args:
        tokens: from ``tokens_of``, on the text encoder's device.
    """
    count, chunks, length = tokens.shape
    states: torch.Tensor = text_encoder(tokens.view(count * chunks, length)).last_hidden_state
    if chunks == 1:
        return states
    states = states.view(count, chunks, length, -1)
    inner = states[:, :, 1:-1].flatten(1, 2)
    return torch.cat([states[:, 0, :1], inner, states[:, -1, -1:]], dim=1)


@torch.no_grad()
def encode_captions(
    base: BaseModel,
    captions: Sequence[str],
    device: torch.device,
    max_tokens: int = DEFAULT_TOKENS,
) -> torch.Tensor:
    """States of the captions in the UNet's precision, (captions, tokens, width)."""
    tokens = tokens_of(base, captions, max_tokens)
    with on_device(base.text_encoder, device):
        states = [
            text_states(base.text_encoder, few.to(device))
            for few in torch.split(tokens, CAPTIONS_AT_ONCE)
        ]
    return torch.cat(states).to(base.unet.dtype)
