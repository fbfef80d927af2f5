"""Layers that read the same feature map, asked for what they make of it in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Projection = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""What each of some layers gives for one x."""
Joining = Callable[[Sequence[torch.nn.Module]], Projection]
"""How layers that read the same x are computed; asked once, before the first pass."""


def one_by_one(layers: Sequence[torch.nn.Module]) -> Projection:
    """Each layer by itself."""
    return lambda x: [layer(x) for layer in layers]
