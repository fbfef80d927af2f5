"""The UNet's prediction target at each timestep, and the weight of each image's loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler


@dataclass(frozen=True)
class Objective:
    """Noise levels and loss weights by timestep: tables of shape (timesteps,) on the device.

    ``x_t = signal[t] * x_0 + sigma[t] * noise`` with ``signal = sqrt(alpha_bar)`` and
    ``sigma = sqrt(1 - alpha_bar)`` (DDPM, arXiv 2006.11239, equation 4).
    """

    signal: torch.Tensor
    sigma: torch.Tensor
    weight: torch.Tensor
    predicts_velocity: bool

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """``x_t`` for latents (n, c, h, w) at timesteps (n,)."""
        return _at(self.signal, timesteps) * latents + _at(self.sigma, timesteps) * noise

    def target(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """The noise, or the velocity ``signal * noise - sigma * x_0`` (arXiv 2202.00512)."""
        if not self.predicts_velocity:
            return noise
        return _at(self.signal, timesteps) * noise - _at(self.sigma, timesteps) * latents


def objective_of(
    noise_schedule: DDPMScheduler, snr_gamma: float | None, device: torch.device
) -> Objective:
    """The objective for a base model's noise schedule."""
    alpha_bar = noise_schedule.alphas_cumprod.double()
    velocity = noise_schedule.config.prediction_type == "v_prediction"
    weight = torch.ones_like(alpha_bar)
    if snr_gamma is not None:
        weight = min_snr_weight(alpha_bar, snr_gamma, velocity=velocity)
    return Objective(
        signal=alpha_bar.sqrt().float().to(device),
        sigma=(1 - alpha_bar).sqrt().float().to(device),
        weight=weight.float().to(device),
        predicts_velocity=velocity,
    )


def min_snr_weight(alpha_bar: torch.Tensor, gamma: float, *, velocity: bool) -> torch.Tensor:
    """Min-SNR-gamma weights (arXiv 2303.09556, section 3.4), same shape as ``alpha_bar``.

    With ``snr = alpha_bar / (1 - alpha_bar)``: ``min(snr, gamma) / snr`` if the model predicts
    noise, ``min(snr, gamma) / (snr + 1)`` if it predicts velocity. At ``snr = 0`` the former takes
    its limit, 1.
    """
    snr = alpha_bar / (1 - alpha_bar)
    if velocity:
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


def _at(table: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    return table[timesteps].view(-1, 1, 1, 1)
