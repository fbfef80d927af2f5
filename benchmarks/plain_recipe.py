"""The common recipe, as plainly as examples write it: what the trainer is measured against.

Every step decodes and encodes its picture and its caption anew and reads the loss back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diffusers.optimization import get_scheduler
from peft import LoraConfig

from adapters.diffusion.base_model import BaseModel
from adapters.pillow import decode
from domain.picture import Picture


def plain_steps(
    base: BaseModel, pictures: Sequence[Picture], resolution: int, steps: int
) -> Iterator[float]:
    """Train at batch 1, rank 8, and yield each step's loss."""
    import numpy as np

    unet, vae = base.unet, base.vae
    unet.add_adapter(
        LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )
    try:
        weights = [p for p in unet.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-4)
        schedule = get_scheduler("cosine", optimizer, 0, steps)
        for step in range(steps):
            picture = pictures[step % len(pictures)]
            image = decode(picture.data).resize((resolution, resolution))
            pixels = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None] / 127.5 - 1
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
                tokens = base.tokenizer(
                    picture.caption or "",
                    padding="max_length",
                    truncation=True,
                    return_tensors="pt",
                ).input_ids
                states = base.text_encoder(tokens)[0]
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (1,))
            noisy = base.noise_schedule.add_noise(latents, noise, timesteps)
            predicted = unet(noisy, timesteps, states).sample
            loss = torch.nn.functional.mse_loss(predicted, noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            yield loss.item()
    finally:
        unet.delete_adapters("default")
