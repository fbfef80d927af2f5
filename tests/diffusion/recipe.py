"""The common training recipe, as simple as in diffusers' examples."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.optimization import get_scheduler
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.dataset import encode_dataset
from adapters.diffusion.data.rng import (
    epoch_batches,
    generator_for,
    sample_step_noise,
    steps_per_epoch,
)
from adapters.diffusion.lora_targets import ATTENTION
from adapters.images.decode import decode
from domain.buckets import bucket_of
from domain.training_plan import TrainingPlan


def recipe(base: BaseModel, plan: TrainingPlan) -> tuple[list[float], torch.Tensor]:
    """The examples' loop, which encodes everything at every step: losses by epoch, and weights.

    It shares only random choices with the trainer: order, noises, timesteps, initial weights.
    """
    parameters, unet = plan.parameters, base.unet
    decoded_images = [decode(image.data) for image in plan.images]
    sizes = [
        bucket_of(*decoded_image.size, parameters.resolution) for decoded_image in decoded_images
    ]
    buckets = [
        [i for i, other in enumerate(sizes) if other == size] for size in sorted(set(sizes))
    ]
    epoch_steps = steps_per_epoch(buckets, parameters.batch_size)
    total = parameters.epochs * epoch_steps
    config = LoraConfig(r=parameters.rank, lora_alpha=parameters.rank, target_modules=[*ATTENTION])
    inject_adapter_in_model(config, unet, adapter_name="plain")
    try:
        generator, weights = generator_for(parameters.seed, "adapters"), []
        for layer in (layer for layer in unet.modules() if isinstance(layer, LoraLayer)):
            down, up = layer.lora_A["plain"].weight, layer.lora_B["plain"].weight
            fresh = torch.empty(down.shape)
            torch.nn.init.kaiming_uniform_(fresh, a=5**0.5, generator=generator)
            down.data.copy_(fresh)
            weights += [down, up]
        optimizer = torch.optim.AdamW(weights, lr=parameters.learning_rate, weight_decay=1e-2)
        warm_up = parameters.warmup_steps(total)
        schedule = get_scheduler(
            "cosine", optimizer, num_warmup_steps=warm_up, num_training_steps=total
        )
        curve = []
        for epoch in range(parameters.epochs):
            losses = 0.0
            batches = epoch_batches(buckets, parameters.batch_size, parameters.seed, epoch)
            for position, batch in enumerate(batches):
                loss = loss_of(
                    base, plan, decoded_images, sizes, batch, epoch * epoch_steps + position
                )
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses += loss.item() * len(batch)
            curve.append(losses / len(decoded_images))
        return curve, torch.cat([weight.detach().flatten() for weight in weights])
    finally:
        unet.unload_lora()


def loss_of(
    base: BaseModel,
    plan: TrainingPlan,
    decoded_images: list[Any],
    sizes: list[tuple[int, int]],
    batch: tuple[int, ...],
    step: int,
) -> torch.Tensor:
    device = base.unet.device
    with torch.no_grad():
        encoded = encode_dataset(
            base,
            [(decoded_images[i], sizes[i]) for i in batch],
            [(plan.images[i].caption or "").strip() for i in batch],
            flipped=False,
            device=device,
        )
    draw = sample_step_noise(plan.parameters, step, encoded.shape(tuple(range(len(batch)))), 1000)
    mean, std = encoded.posteriors[sizes[batch[0]]]
    latents = (mean + std * draw.vae_noise.to(device)) * base.vae.config.scaling_factor
    states = torch.stack([encoded.captions[row] for row in encoded.caption_rows])
    target, timesteps = draw.noise.to(device), draw.timesteps.to(device)
    noisy = base.noise_schedule.add_noise(latents, target, timesteps)
    predicted = base.unet(noisy, timesteps, states).sample
    return torch.nn.functional.mse_loss(predicted, target)
