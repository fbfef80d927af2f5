"""Measure previews with the model: closeness to the artist's style, faithfulness to prompts.

Closeness takes the channel means and deviations of the VAE encoder's features, which carry style
(AdaIN, arXiv 1703.06868), and projects them onto Fisher's linear discriminant (1936) between the
artist's images and the base's previews.

Faithfulness uses the model's noise-prediction error as a classifier of prompts (arXiv 2303.16203).
The LoRA is active meanwhile, because the base alone does not recognise contents in an unknown
style. A LoRA that draws the same for every prompt cannot tell prompts apart: it scores 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import torch
from diffusers import AutoencoderKL
from PIL import Image

from adapters.common.device_memory import on_device
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.dataset import pixels_of
from adapters.diffusion.data.rng import generator_for
from adapters.diffusion.objective import objective_of
from adapters.diffusion.preview import PreviewRequest
from domain.results import Preview

SHRINKAGE = 0.5
"""Share of the diagonal in the covariance of few images with many features (Ledoit and Wolf's
form). Values from 0.1 to 0.5 rank drawn sets of known style strength equally well."""
TIMESTEPS = (0.45, 0.65)
"""Noise levels of the classifier, as shares of the schedule: prompts matter most in the middle.
Each is used with a noise and its negative, so that most of the noise's own effect cancels."""
OTHER_PROMPTS = 2
"""Wrong prompts that each preview is compared with."""
_TINY = 1e-4


@contextmanager
def encoder_statistics(vae: AutoencoderKL) -> Iterator[list[torch.Tensor]]:
    """Collect the statistics of all images that ``vae`` encodes in the with-block.

    Yields:
        A list that grows by one (n, features) tensor on the CPU per batch: mean and logarithm of
        the standard deviation of each channel after the encoder's first layer and each block.
    """
    batches: list[torch.Tensor] = []
    found: list[torch.Tensor] = []
    layers = (vae.encoder.conv_in, *vae.encoder.down_blocks)

    def note(_: torch.nn.Module, __: object, features: torch.Tensor) -> None:
        values = features.float().flatten(2)
        spread = values.std(2).clamp(min=_TINY).log()
        found.append(torch.cat([values.mean(2), spread], dim=1).cpu())

    def end(_: torch.nn.Module, __: object, ___: torch.Tensor) -> None:
        # A batch that ran out of memory may have left some before these.
        batches.append(torch.cat(found[-len(layers) :], dim=1))
        found.clear()

    hooks = [layer.register_forward_hook(note) for layer in layers]
    hooks.append(vae.encoder.register_forward_hook(end))
    try:
        yield batches
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class StyleAxis:
    """The axis from the base's style to the artist's in the space of the statistics."""

    origin: torch.Tensor
    """(features,): the mean of the base's previews, at 0 of the axis."""
    direction: torch.Tensor
    """(features,): its dot product with (artist's mean - origin) is 1."""

    def closeness(self, statistics: torch.Tensor) -> float:
        """Closeness of a set of images, (n, features), to the artist's style.

        0 at the base's mean, 1 at the artist's; beyond the artist's it falls again.
        """
        position = float((statistics.mean(0) - self.origin) @ self.direction)
        return 1 - abs(1 - position)


def style_axis(artist: torch.Tensor, plain: torch.Tensor) -> StyleAxis:
    """Fit the axis to statistics, (n, features), of the artist's images and the base's previews.

    ``direction = covariance^-1 (mean(artist) - mean(plain))``, scaled, with the covariance within
    the two sets, shrunk towards its diagonal.
    """
    gap = artist.mean(0) - plain.mean(0)
    within = torch.cat([artist - artist.mean(0), plain - plain.mean(0)])
    covariance = within.T @ within / max(1, len(within) - 2)
    diagonal = torch.diag(covariance.diagonal() + _TINY)
    direction = torch.linalg.solve((1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal, gap)
    return StyleAxis(plain.mean(0), direction / (gap @ direction).clamp(min=_TINY))


@torch.no_grad()
def encode_previews(
    base: BaseModel, previews: Sequence[Preview], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of the previews, (n, features) on the CPU, and their latents on ``device``."""
    latents = []
    with on_device(base.vae, device), encoder_statistics(base.vae) as statistics:
        for preview in previews:
            pixels = pixels_of(Image.open(BytesIO(preview.png))).to(device)
            latents.append(base.vae.encode(pixels).latent_dist.mean)
    return torch.cat(statistics), torch.cat(latents) * float(base.vae.config.scaling_factor)


@torch.no_grad()
def faithfulness(
    base: BaseModel, latents: torch.Tensor, request: PreviewRequest, device: torch.device
) -> float:
    """Share of comparisons in which a preview's own prompt predicts its noise better than another,
    with the LoRA that is active now.

    1 if every preview shows its prompt; 0.5 by chance. Each preview is compared with the next
    prompts of the request, or with the empty prompt if there is no other. Both
    prompts of a comparison see the same noises.

    Args:
        latents: (prompts, c, h, w), in the order of the request's prompts.
    """
    objective = objective_of(base.noise_schedule, None, device)
    steps = len(objective.weight)
    timesteps = torch.tensor([int(share * steps) for share in 2 * TIMESTEPS], device=device)
    wins = []
    for number, prompt in enumerate(request.prompts):
        later = [*range(number + 1, len(latents)), *range(number)]
        others = [n for n in later if request.prompts[n] != prompt][:OTHER_PROMPTS]
        wrong = request.states[others] if others else request.empty
        shape = latents.shape[1:]
        generator = generator_for(request.seed, "faithfulness", number)
        half = torch.randn((len(TIMESTEPS), *shape), generator=generator)
        noise = torch.cat([half, -half]).to(device)
        latent = latents[number].expand(len(timesteps), *shape)
        noisy = objective.add_noise(latent, noise, timesteps).to(base.unet.dtype)
        target = objective.target(latent, noise, timesteps)
        errors = []
        for states in (request.states[number], *wrong):
            prompts = states.expand(len(timesteps), -1, -1)
            predicted = base.unet(noisy, timesteps, encoder_hidden_states=prompts).sample
            errors.append((predicted.float() - target).square().mean())
        wins.append(errors[0] < torch.stack(errors[1:]))
    return float(torch.cat(wins).float().mean())
