"""The frozen base model that styles are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from adapters.diffusion.base.fingerprint import fingerprint_of
from adapters.diffusion.base.pipeline_files import read_components

_SD15 = ((320, 640, 1280, 1280), 2, 768)
"""Block widths, layers per block, and text encoder width of the UNet."""


@dataclass(frozen=True)
class BaseModel:
    """The parts of Stable Diffusion, frozen. Training a style leaves their weights unchanged."""

    name: str
    """Hub name, or the name of the file or folder without its path."""
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    noise_schedule: DDPMScheduler
    fingerprint: str
    """SHA-256, in hex (``fingerprint_of``)."""

    @property
    def native_resolution(self) -> int:
        """Side in pixels of the images that the model was trained on: 512 for SD 1.5."""
        halvings = len(self.vae.config.block_out_channels) - 1
        return int(self.unet.config.sample_size * 2**halvings)

    @property
    def is_sd15(self) -> bool:
        """Whether the UNet has the layers and widths of Stable Diffusion 1.5."""
        config = self.unet.config
        widths = tuple(config.block_out_channels)
        return (widths, config.layers_per_block, config.cross_attention_dim) == _SD15

    @property
    def prediction_type(self) -> str:
        """``epsilon`` or ``v_prediction``."""
        return str(self.noise_schedule.config.prediction_type)


def load_base(name: str, config_folder: Path | None = None) -> BaseModel:
    """Load a base model, in float32 on the CPU, from safetensors files only: no pickle, no remote
    code.

    The trainer moves the UNet to its device. VAE and text encoder are on the device only while
    they encode (``on_device``).

    Args:
        name: a diffusers folder, a single-file ``.safetensors`` checkpoint or a hub name.
        config_folder: diffusers folder with the configuration and tokenizer for a single-file
            checkpoint. If None they are downloaded from the hub.

    Raises:
        BaseModelInvalid: the model cannot be loaded, or is not a Stable Diffusion 1.5.
    """
    components = read_components(name, config_folder)
    for part in ("unet", "vae", "text_encoder"):
        torch.nn.Module.float(components[part]).eval().requires_grad_(False)
    return BaseModel(
        name=Path(name).name if Path(name).exists() else name,
        tokenizer=components["tokenizer"],
        text_encoder=components["text_encoder"],
        vae=components["vae"],
        unet=components["unet"],
        noise_schedule=DDPMScheduler.from_config(components["scheduler"].config),
        fingerprint=fingerprint_of(components),
    )
