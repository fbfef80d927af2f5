"""Stable Diffusion 1.5 in small: the same parts in the same order, narrower, for 128 px."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from assets.vocabulary import CONTEXT_LENGTH

NATIVE_SIDE = 128
"""Side in pixels of the square training images of the base: 512 for SD 1.5."""

TEXT_WIDTH = 64


def build_autoencoder() -> AutoencoderKL:
    """Images (3, 8h, 8w) in [-1, 1] to latents (4, h, w) and back.

    One group per norm: several groups would each remove the mean of a few channels, and so the
    colour of a flat image. It starts as a linear map with zero residual branches (as in
    arXiv:1901.09321), which learns colours quickly.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=NATIVE_SIDE,
    )
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
            if name.endswith((".conv2", ".to_out.0")):
                nn.init.zeros_(module.weight)
    return vae


def build_unet() -> UNet2DConditionModel:
    """The UNet: from latents (4, h, w), a timestep and a caption's (77, 64) states to noise.

    `attention_head_dim` is the number of heads, as in the configuration of SD 1.5.
    """
    return UNet2DConditionModel(
        sample_size=NATIVE_SIDE // 8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(32, 64, 64, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """From a caption's 77 tokens to (77, 64) states."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=TEXT_WIDTH * 4,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> PNDMScheduler:
    """The noise schedule of SD 1.5, with identical settings.

    PNDM has no setting `clip_sample`, but DDPM and DDIM read it if they are created from this
    configuration, and would clip latents by default.
    """
    return PNDMScheduler.from_config(
        {
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "clip_sample": False,
        }
    )


def build_pipeline(tokenizer_folder: Path) -> StableDiffusionPipeline:
    """The whole untrained base, with the vocabulary in `tokenizer_folder`."""
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    return StableDiffusionPipeline(
        vae=build_autoencoder(),
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=build_unet(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
