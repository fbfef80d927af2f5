"""The captions through a text encoder that is trained, too: encoded anew at every step."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.dataset import tokens_of


class TextStates:
    """What the denoiser is told of each caption, by the text encoder as it stands.

    Args:
        captions: by rows; the empty caption first, as in ``EncodedDataset.captions``.
    """

    def __init__(self, base: BaseModel, captions: Iterable[str], device: torch.device) -> None:
        self._encoder = base.text_encoder
        self._dtype = base.unet.dtype
        self._tokens = tokens_of(base, captions).to(device)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """States of the captions in ``rows`` (n,), on the device: (n, tokens, width)."""
        states: torch.Tensor = self._encoder(self._tokens[rows]).last_hidden_state
        return states.to(self._dtype)
