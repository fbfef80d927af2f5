"""The available optimizers, the learning rate of every step, and an optimizer's state for a
checkpoint."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from application.ports import CheckpointRejected
from domain.parameters import OptimizerName, TrainingParameters

_GIVEN = {"lr", "params"}
"""Set anew by each run, so not part of the state."""
_OF_WEIGHTS = {"step"}
"""Numbers stored with the weights; all others are stored in the group."""
_TABLE = 256
"""Number of entries in bitsandbytes' table of 8-bit values."""


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer's whole state."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By the optimizer's own names."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Numbers of its group, by name (Prodigy's estimate), and ``step`` if it is not a tensor."""


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the decorators that import ``torch._dynamo``: they only matter for
    ``torch.compile``, and importing it is slow."""

    __module__ = torch.optim.AdamW.__module__
    """Its name in the metadata of styles is torch's."""
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def build_optimizer(
    weights: torch.nn.Parameter, parameters: TrainingParameters
) -> torch.optim.Optimizer:
    """Build an optimizer for one tensor.

    Prodigy is configured as in diffusers' examples: bias correction, and safe with a warm-up.
    Its library has to be installed (``require_optimizer``).
    """
    name = parameters.optimizer
    rate, decay = parameters.learning_rate, parameters.weight_decay
    if name is OptimizerName.ADAMW:
        adamw = AdamW([weights], lr=rate, weight_decay=decay, fused=True)
        # Initialised here, so that a checkpoint before the first step has the state, too.
        adamw.state[weights] = {
            "step": torch.zeros((), device=weights.device),
            "exp_avg": torch.zeros_like(weights),
            "exp_avg_sq": torch.zeros_like(weights),
        }
        return adamw
    if name is OptimizerName.ADAMW_8BIT:
        # On a CPU bitsandbytes looks for kernels on the hub and logs warnings if there are none.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from bitsandbytes.optim import AdamW8bit

        quantised: torch.optim.Optimizer = AdamW8bit([weights], lr=rate, weight_decay=decay)
        return quantised
    from prodigyopt import Prodigy

    prodigy: torch.optim.Optimizer = Prodigy(
        [weights], lr=rate, decouple=True, use_bias_correction=True, safeguard_warmup=True
    )
    # Not through the constructor, which would print a message about it.
    prodigy.param_groups[0]["weight_decay"] = decay
    return prodigy


def learning_rates(parameters: TrainingParameters, total_steps: int) -> list[float]:
    """The rate of each step, by diffusers' schedules, so that resuming needs no scheduler state.

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


def copy_state(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """A copy of the state, on the same device. Before the first step, an optimizer may have none
    yet."""
    (group,) = optimizer.param_groups
    (weights,) = group["params"]
    state: dict[str, Any] = optimizer.state.get(weights, {})
    tensors = {name: value.clone() for name, value in state.items() if torch.is_tensor(value)}
    numbers = {name: value for name, value in (group | state).items() if _is_number(name, value)}
    return OptimizerState(tensors, numbers)


def restore_state(optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Restore a state by copying into the existing tensors.

    Raises:
        CheckpointRejected: the state is of another optimizer or of other weights.
    """
    (group,) = optimizer.param_groups
    (weights,) = group["params"]
    own = optimizer.state[weights]
    tensors = {name for name, value in own.items() if torch.is_tensor(value)}
    if missing := tensors - state.tensors.keys():
        raise CheckpointRejected(f"the checkpoint lacks the optimizer's {min(missing)}")
    for name, value in state.tensors.items():
        fits = name not in own or own[name].shape == value.shape
        if not fits or value.numel() > max(weights.numel(), _TABLE):
            raise CheckpointRejected(
                f"the checkpoint is damaged: the optimizer's {name} is {tuple(value.shape)}"
            )
        if name in own:
            own[name].copy_(value)
        else:
            own[name] = value.to(weights.device, copy=True)
    for name, number in state.numbers.items():
        place = own if name in _OF_WEIGHTS else group
        place[name] = number


def _is_number(name: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or name in _GIVEN:
        return False
    return math.isfinite(value)
