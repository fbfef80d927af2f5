"""The learning rate as a function of the step, so that a resumed run needs no schedule's state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.optimization import get_scheduler

from domain.parameters import TrainingParameters


def learning_rate_of(parameters: TrainingParameters, total_steps: int) -> Callable[[int], float]:
    """The rate at each step, counted from 0, by diffusers' schedules.

    During ``w`` steps of warm-up it is ``step / w`` of the peak, so the first step of a warm-up
    moves nothing; ``constant`` has none. All but the constant ones then fall to 0 at
    ``total_steps``, which is one after the last step (``polynomial`` to a ten-millionth of the
    peak). A warm-up longer than the run never reaches the peak.
    """
    # A schedule wants an optimizer to drive; only its factor per step is of use here.
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = get_scheduler(
        str(parameters.lr_scheduler),
        stand_in,
        num_warmup_steps=parameters.warmup_steps(total_steps),
        num_training_steps=total_steps,
        num_cycles=parameters.lr_num_cycles,
        power=parameters.lr_power,
    )
    factor = schedule.lr_lambdas[0]
    return lambda step: parameters.learning_rate * float(factor(step))
