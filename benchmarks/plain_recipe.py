"""The plain recipe, written as in public examples: the baseline for the trainer's speed.

Every step decodes and encodes its images and captions again, and copies the loss to the host. On
a GPU it uses mixed precision as the examples do: frozen parts in bfloat16, LoRA weights in
float32 under autocast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig

from adapters.diffusion.base.model import BaseModel
from adapters.images.decode import decode
from domain.image import TrainingImage


def plain_steps(
    base: BaseModel, images: Sequence[TrainingImage], resolution: int, steps: int, batch: int = 1
) -> Iterator[float]:
    """Train at rank 8 on the UNet's device, and yield each step's loss."""
    import numpy as np

    unet, vae, text_encoder = base.unet, base.vae, base.text_encoder
    device, dtype = unet.device, unet.dtype
    for part in (vae, text_encoder):
        torch.nn.Module.to(part, device=device, dtype=dtype)
    unet.add_adapter(
        LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )
    try:
        cast_training_params(unet, dtype=torch.float32)
        weights = [p for p in unet.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-4)
        schedule = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=steps)
        for step in range(steps):
            chosen = [images[(step * batch + i) % len(images)] for i in range(batch)]
            decoded_images = [decode(p.data).resize((resolution, resolution)) for p in chosen]
            pixels = torch.stack(
                [
                    torch.from_numpy(np.array(decoded_image)).permute(2, 0, 1)
                    for decoded_image in decoded_images
                ]
            )
            pixels = (pixels / 127.5 - 1).to(device, dtype)
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
                tokens = base.tokenizer(
                    [image.caption or "" for image in chosen],
                    padding="max_length",
                    truncation=True,
                    return_tensors="pt",
                ).input_ids
                states = text_encoder(tokens.to(device))[0]
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (batch,), device=device)
            noisy = base.noise_schedule.add_noise(latents, noise, timesteps)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                predicted = unet(noisy, timesteps, states).sample
            loss = torch.nn.functional.mse_loss(predicted.float(), noise.float())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            yield loss.item()
    finally:
        unet.unload_lora()
