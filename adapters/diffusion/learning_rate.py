"""The learning rate of every step, computed ahead, so that resuming needs no scheduler state."""

from __future__ import annotations

import torch
from diffusers.optimization import get_scheduler

from adapters.diffusion.optimizer import AdamW
from domain.parameters import TrainingParameters


def learning_rates(parameters: TrainingParameters, total_steps: int) -> list[float]:
    """The rate of each step, by diffusers' schedules.

    During ``w`` warm-up steps it is ``step / w`` of the peak, so the first changes nothing;
    ``constant`` has no warm-up. All but the constant schedules then fall to 0 at ``total_steps``,
    one after the last step (``polynomial`` falls to a ten-millionth of the peak). A warm-up longer
    than the run never reaches the peak.
    """
    # A scheduler requires an optimizer; only its factor per step is used here.
    stand_in = AdamW([torch.zeros(1)], lr=1.0)
    schedule = get_scheduler(
        str(parameters.lr_scheduler),
        stand_in,
        num_warmup_steps=parameters.warmup_steps(total_steps),
        num_training_steps=total_steps,
        num_cycles=parameters.lr_num_cycles,
        power=parameters.lr_power,
    )
    factor = schedule.lr_lambdas[0]
    return [parameters.learning_rate * float(factor(step)) for step in range(total_steps)]
