"""Load a UNet from a diffusers folder directly onto a device, one weight at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open

from adapters.diffusion.base.fingerprint import digest_of

WEIGHTS = "diffusion_pytorch_model.safetensors"


def has_one_file(folder: Path) -> bool:
    """Whether the folder holds all weights in one safetensors file, as SD 1.5's does."""
    return (folder / WEIGHTS).is_file()


def load_unet(
    folder: Path, device: torch.device | str, dtype: torch.dtype
) -> tuple[UNet2DConditionModel, dict[str, str]]:
    """Load a UNet without holding all of its weights in host memory at once.

    Returns:
        The UNet, and the digest of each weight as stored in the file (``digest_of``).

    Raises:
        Exception: from torch, diffusers or safetensors, if a file is missing or damaged.
    """
    config = UNet2DConditionModel.load_config(folder)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    weights: dict[str, torch.Tensor] = {}
    with (
        ThreadPoolExecutor() as pool,
        safe_open(folder / WEIGHTS, framework="pt", device="cpu") as file,
    ):
        digests = {}
        for name in file.keys():  # noqa: SIM118 - not a mapping
            weight = file.get_tensor(name)
            digests[name] = pool.submit(digest_of, weight)
            weights[name] = weight.to(device=device, dtype=dtype, copy=True)
        taken = {name: digest.result() for name, digest in digests.items()}
    unet.load_state_dict(weights, strict=True, assign=True)
    return unet, taken
