"""Start a peer's script without torchvision, if none fits the installed torch.

Usage: python without_torchvision.py SCRIPT [ARGUMENT ...]

Provides the few image transforms that the scripts call. transformers looks for torchvision before
these are installed, so that it does not try to use them. If torchvision is installed, start the
script directly.
"""

from __future__ import annotations

import os
import runpy
import sys
import types
from collections.abc import Callable, Sequence
from enum import Enum
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import torch
from PIL import Image


class InterpolationMode(Enum):
    """Names of Pillow's resampling filters."""

    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    LANCZOS = Image.Resampling.LANCZOS


def compose(steps: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Apply the transforms in order."""

    def apply(value: Any) -> Any:
        for step in steps:
            value = step(value)
        return value

    return apply


def to_tensor() -> Callable[[Any], torch.Tensor]:
    """Convert an image or array (height, width, channels) to (channels, height, width), 0 to 1."""

    def apply(image: Any) -> torch.Tensor:
        pixels = np.array(image)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255

    return apply


def normalize(mean: Sequence[float], std: Sequence[float]) -> Callable[..., torch.Tensor]:
    """Subtract the mean and divide by the standard deviation, per channel."""

    def apply(pixels: torch.Tensor) -> torch.Tensor:
        shape = (-1, 1, 1)
        return (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)

    return apply


def resize(
    side: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR
) -> Callable[[Image.Image], Image.Image]:
    """Scale the shorter side to ``side`` pixels."""

    def apply(image: Image.Image) -> Image.Image:
        factor = side / min(image.size)
        width, height = (round(length * factor) for length in image.size)
        return image.resize((width, height), interpolation.value)

    return apply


def center_crop(side: int) -> Callable[[Image.Image], Image.Image]:
    """Crop a square from the centre."""

    def apply(image: Image.Image) -> Image.Image:
        left, top = ((length - side) // 2 for length in image.size)
        return image.crop((left, top, left + side, top + side))

    return apply


def install() -> None:
    """Make ``from torchvision import transforms`` import the functions above."""
    from transformers.utils import is_torchvision_available

    is_torchvision_available()
    package = types.ModuleType("torchvision")
    transforms = types.ModuleType("torchvision.transforms")
    names: dict[str, Any] = {
        "Compose": compose,
        "ToTensor": to_tensor,
        "Normalize": normalize,
        "Resize": resize,
        "CenterCrop": center_crop,
        "Lambda": lambda function: function,
        "InterpolationMode": InterpolationMode,
    }
    transforms.__dict__.update(names)
    package.__dict__.update(transforms=transforms, __version__="0")
    package.__spec__ = ModuleSpec("torchvision", None)  # datasets looks for it
    sys.modules.update({"torchvision": package, "torchvision.transforms": transforms})


if __name__ == "__main__":
    install()
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
