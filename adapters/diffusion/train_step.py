"""One training step: from a batch of images to the update of the LoRA weights."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch

from adapters.diffusion.data.text import text_states
from adapters.diffusion.lora_layers import dropout_rng

if TYPE_CHECKING:
    from adapters.diffusion.session import DiffusionSession
    from adapters.diffusion.training_model import TrainingModel


def train_step(model: TrainingModel, runs: Sequence[DiffusionSession]) -> None:
    """Train each run on its next batch. Several runs share one forward and backward pass.

    Args:
        model: the UNet that carries the runs' LoRA layers.
        runs: one, or several whose next batches have the same shape.

    Raises:
        torch.OutOfMemoryError: repeat the runs whose ``step`` has not advanced.
    """
    # Noise and timesteps are drawn ahead, from each run's seed and step.
    batches = [run.next_batch() for run in runs]
    batch = batches[0] if len(runs) == 1 else concatenated(batches)
    memory, parameters = runs[0].memory, runs[0].parameters
    images_per_pass = memory.micro_batch if len(runs) == 1 else len(batch.noisy_latents)

    def forward_backward(batch: Batch) -> None:
        whole = images_per_pass >= len(batch.noisy_latents)
        for part in [batch] if whole else batch.split(images_per_pass):
            with model.lora.training(part.slots):
                losses = image_losses(model, part)
                part.losses.copy_(losses.detach())
                # A style's loss depends on its own LoRA alone: the sum has every style's gradient.
                by_style = losses.view(len(part.slots), -1).sum(dim=1)
                torch.autograd.backward((by_style * part.loss_scales).sum())

    random = dropout_rng(parameters.seed, runs[0].step, model.device)
    with random if parameters.lora_dropout else nullcontext():
        if memory.checkpointing:
            forward_backward(batch)
        else:
            batch = model.graphs.run(batch, forward_backward, images_per_pass)
    losses = batch.losses.view(len(runs), -1).sum(dim=1)
    if model.distributed is not None:
        model.distributed.all_reduce(model.lora.gradient, losses)

    for run, loss in zip(runs, losses, strict=True):
        run.scaler.unscale_(run.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(run.lora.weights, run.parameters.max_grad_norm)
        if run.scaler.is_enabled():
            # An overflow lowers the loss scale and skips the step; it is not a divergence.
            norm = torch.nan_to_num(norm, nan=0.0, posinf=0.0)
        # Every available optimizer moves weights in proportion to the learning rate. So it steps
        # at the higher rate, and the weights with the lower one keep a share of their step.
        slower = run.lora.unet_weights if run.text_share > 1 else run.lora.text_weights
        before = slower.clone() if run.text_share != 1 else None
        rate = run.schedule[run.step] * run.lr_factor
        run.optimizer.param_groups[0]["lr"] = rate * max(1.0, run.text_share)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        if before is not None:
            torch.lerp(before, slower, min(1, run.text_share) / max(1, run.text_share), out=slower)
        run.optimizer.zero_grad(set_to_none=False)  # its memory is part of the packed gradient
        # Read at the end of the epoch. 0 * norm makes the loss NaN if the gradient is not finite.
        run.epoch_sums += torch.stack([loss + 0 * norm, norm])
        torch.maximum(run.largest_norm, norm, out=run.largest_norm)
        run.step += 1


def image_losses(model: TrainingModel, batch: Batch) -> torch.Tensor:
    """Weighted mean squared error of each image's prediction, (k * n,), in float32."""
    states = batch.conditioning
    if model.text_encoder is not None:
        states = text_states(model.text_encoder, states).to(model.dtype)
    prediction: torch.Tensor = model.unet(
        batch.noisy_latents.to(model.dtype, memory_format=model.memory_format),
        batch.timesteps,
        encoder_hidden_states=states,
        return_dict=False,
    )[0]
    squares = (prediction.float() - batch.target).square()
    losses: torch.Tensor = squares.mean(dim=(1, 2, 3)) * batch.loss_weights
    return losses


@dataclass(frozen=True, eq=False)
class Batch:
    """The inputs of a pass: images of k styles, n of each, style after style.

    Tensors are on the device. The slots are data: a CUDA graph recorded for some styles works for
    any others.
    """

    noisy_latents: torch.Tensor
    """(k * n, c, h, w), float32: latents with noise added."""
    timesteps: torch.Tensor
    """(k * n,)"""
    conditioning: torch.Tensor
    """Text encoder states, (k * n, tokens, width); if the text encoder is trained, token ids,
    (k * n, chunks, tokens)."""
    target: torch.Tensor
    """(k * n, c, h, w), float32: the noise, or the velocity."""
    loss_weights: torch.Tensor
    """(k * n,)"""
    losses: torch.Tensor
    """(k * n,), filled by the pass."""
    loss_scales: torch.Tensor
    """(k,): factor on each style's summed losses: 1 / n, times the loss scale in float16."""
    slots: torch.Tensor
    """(k,), int64: each style's row of the packed LoRA."""

    @property
    def key(self) -> Hashable:
        """Equal for batches that can use the same CUDA graph."""
        return tuple(self.noisy_latents.shape), tuple(self.conditioning.shape), len(self.slots)

    def clone(self) -> Batch:
        """A copy in new memory."""
        return Batch(*(tensor.clone() for tensor in self._tensors()))

    def copy_(self, other: Batch) -> None:
        """Copy another batch's content into this memory."""
        for own, new in zip(self._tensors(), other._tensors(), strict=True):
            own.copy_(new)

    def split(self, count: int) -> Iterator[Batch]:
        """Micro-batches of at most ``count`` images. They share this batch's memory."""
        for start in range(0, len(self.noisy_latents), count):
            yield self.part(slice(start, start + count))

    def halves(self) -> list[Batch]:
        """Both halves; a single image is not split."""
        return list(self.split(-(-len(self.noisy_latents) // 2)))

    def part(self, images: slice) -> Batch:
        """Some of the images. They share this batch's memory."""
        return replace(self, **{name: getattr(self, name)[images] for name in _PER_IMAGE})

    def _tensors(self) -> Iterator[torch.Tensor]:
        return (getattr(self, field.name) for field in fields(self))


_PER_IMAGE = ("noisy_latents", "timesteps", "conditioning", "target", "loss_weights", "losses")


def concatenated(batches: Sequence[Batch]) -> Batch:
    """One batch from several styles' batches of equal shape."""
    names = (field.name for field in fields(Batch))
    return Batch(*(torch.cat([getattr(batch, name) for batch in batches]) for name in names))
