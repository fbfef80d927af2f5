"""A base model with Stable Diffusion 1.5's shapes and random weights, for benchmarks."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from adapters.diffusion.base.model import BaseModel
from benchmarks import SMALL_BASE

RESOLUTION = 512


def full_size_base(device: torch.device | str, dtype: torch.dtype = torch.float32) -> BaseModel:
    """A model with 859.5 M parameters in the UNet, 83.7 M in the VAE, 123 M in the text encoder.

    The configurations are those of stable-diffusion-v1-5. The tokenizer is the small base's, with
    the same length and a smaller vocabulary.
    """
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=512,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_attention_heads=12,
                num_hidden_layers=12,
                projection_dim=768,
            )
        )
    torch.nn.Module.to(unet, dtype=dtype)
    for part in (unet, vae, text_encoder):
        part.eval().requires_grad_(False)
    return BaseModel(
        name="random weights in SD 1.5's shapes",
        tokenizer=CLIPTokenizer.from_pretrained(SMALL_BASE, subfolder="tokenizer"),
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        noise_schedule=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        ),
        fingerprint="random",
    )


def pipeline_of(base: BaseModel) -> StableDiffusionPipeline:
    """The base as a diffusers pipeline that shares its weights."""
    return StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=base.noise_schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_base(base: BaseModel, folder: Path) -> None:
    """Write the base as a diffusers folder."""
    pipeline_of(base).save_pretrained(folder)
