"""A denoiser from its folder or from another device straight to the device, weight by weight."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open

from adapters.diffusion.base.fingerprint import digest_of

WEIGHTS = "diffusion_pytorch_model.safetensors"


def has_one_file(folder: Path) -> bool:
    """Whether the folder holds all weights in one file, as SD 1.5's does."""
    return (folder / WEIGHTS).is_file()


def load_denoiser(
    folder: Path, device: torch.device | str, dtype: torch.dtype
) -> tuple[UNet2DConditionModel, dict[str, str]]:
    """Build a denoiser whose weights have never been whole in float32 beside the device.

    Returns:
        It, and each weight's digest as it is in the file, taken on the way.

    Raises:
        Exception: of torch, diffusers or safetensors, when something is missing or damaged.
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
