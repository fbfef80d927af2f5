from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from adapters.diffusion.objective import min_snr_weight, objective_of

CPU = torch.device("cpu")


def schedule(prediction_type: str = "epsilon") -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
    )


def test_min_snr_weights_by_hand() -> None:
    # alpha_bar 0.9, 0.5, 0.2 have a signal-to-noise ratio of 9, 1 and 0.25.
    alpha_bar = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    noise = min_snr_weight(alpha_bar, 5.0, velocity=False)
    velocity = min_snr_weight(alpha_bar, 5.0, velocity=True)
    assert noise.tolist() == pytest.approx([5 / 9, 1, 1])
    assert velocity.tolist() == pytest.approx([5 / 10, 1 / 2, 0.25 / 1.25])


def test_min_snr_weight_is_finite_where_only_noise_is_left() -> None:
    nothing = torch.zeros(1, dtype=torch.float64)
    assert min_snr_weight(nothing, 5.0, velocity=False).item() == 1
    assert min_snr_weight(nothing, 5.0, velocity=True).item() == 0


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noisy_latents_and_target_are_those_of_diffusers(prediction_type: str) -> None:
    reference = schedule(prediction_type)
    objective = objective_of(reference, None, CPU)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([0, 400, 999])
    expected = {
        "epsilon": noise,
        "v_prediction": reference.get_velocity(latents, noise, timesteps),
    }[prediction_type]
    torch.testing.assert_close(
        objective.add_noise(latents, noise, timesteps),
        reference.add_noise(latents, noise, timesteps),
    )
    torch.testing.assert_close(objective.target(latents, noise, timesteps), expected)


def test_without_gamma_every_timestep_has_the_same_weight() -> None:
    assert set(objective_of(schedule(), None, CPU).weight.tolist()) == {1.0}
