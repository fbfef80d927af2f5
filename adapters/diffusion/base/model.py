"""The frozen model that styles are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from adapters.diffusion.base.fingerprint import fingerprint_of
from adapters.diffusion.base.pipeline_files import read_pipeline

_SD15 = ((320, 640, 1280, 1280), 2, 768)
"""Widths of its blocks, layers in each, and width of its text encoder."""


@dataclass(frozen=True)
class BaseModel:
    """Stable Diffusion's parts, frozen. Adapters come and go; the weights stay as they are."""

    name: str
    """The hub's name, or the file's or folder's without the path to it."""
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    noise_schedule: DDPMScheduler
    fingerprint: str
    """SHA-256 over every weight and the configuration that gives them their meaning."""

    @property
    def latent_scale(self) -> int:
        """Pixels per latent, a side: 8 for SD 1.5."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def native_resolution(self) -> int:
        """Side in pixels that the model was trained for: 512 for SD 1.5."""
        return int(self.unet.config.sample_size) * self.latent_scale

    @property
    def is_sd15(self) -> bool:
        """Whether its denoiser has the layers and widths of Stable Diffusion 1.5's."""
        config = self.unet.config
        widths = tuple(config.block_out_channels)
        return (widths, config.layers_per_block, config.cross_attention_dim) == _SD15

    @property
    def prediction_type(self) -> str:
        """``epsilon`` or ``v_prediction``."""
        return str(self.noise_schedule.config.prediction_type)


@contextmanager
def placed(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """While open, the module is on ``device``; then it makes room again.

    What it holds at home is kept there and put back, not copied back: the weights are frozen.
    """
    home = next(module.parameters()).device
    if home == device:
        yield
        return
    held = [*module.parameters(), *module.buffers()]
    at_home = [tensor.data for tensor in held]
    try:
        for tensor in held:
            tensor.data = tensor.data.to(device, non_blocking=True)
        yield
    finally:
        for tensor, data in zip(held, at_home, strict=True):
            tensor.data = data


def load_base(
    name: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    config_folder: Path | None = None,
) -> BaseModel:
    """Load a base model. Reads safetensors only, never a pickle, and runs none of its code.

    The denoiser goes to ``device`` in ``dtype``, from a folder weight by weight. Autoencoder and
    text encoder work once per image and caption: they stay on the CPU in float32 and visit
    the device then.

    Args:
        name: a diffusers folder, a single-file ``.safetensors`` checkpoint or a hub name.
        config_folder: a diffusers folder whose configuration and tokenizer a single file goes
            with; without it they come from the hub.

    Raises:
        BaseModelInvalid: it is not a Stable Diffusion 1.5 in safetensors, or not within reach.
    """
    pipeline, digests = read_pipeline(
        name, device=device, dtype=dtype, config_folder=config_folder
    )
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.eval().requires_grad_(False)
    for part in (pipeline.vae, pipeline.text_encoder):
        part.float()
    fingerprint = fingerprint_of(pipeline, digests)
    # diffusers' own ``to`` warns of modules to be kept in float32 even where there are none.
    torch.nn.Module.to(pipeline.unet, device=device, dtype=dtype)
    return BaseModel(
        name=Path(name).name if Path(name).exists() else name,
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        vae=pipeline.vae,
        unet=pipeline.unet,
        noise_schedule=DDPMScheduler.from_config(pipeline.scheduler.config),
        fingerprint=fingerprint,
    )
