"""The optimizers to choose from, and their state as tensors and numbers for a checkpoint."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch

from domain.failure import Failure, FailureCode, TrainingFailed
from domain.parameters import OptimizerName, TrainingParameters

_LIBRARIES = {
    OptimizerName.ADAMW_8BIT: ("bitsandbytes", "adam8bit"),
    OptimizerName.PRODIGY: ("prodigyopt", "prodigy"),
}
"""For each optimizer that torch does not have: its library, and our extra that brings it."""
_CLASSES = {
    OptimizerName.ADAMW: "torch.optim.adamw.AdamW",
    OptimizerName.ADAMW_8BIT: "bitsandbytes.optim.adamw.AdamW8bit",
    OptimizerName.PRODIGY: "prodigyopt.prodigy.Prodigy",
}
_GIVEN = {"lr", "params"}
"""What a run sets anew: no part of the state."""
_OF_WEIGHTS = {"step"}
"""Numbers kept with the weights; all others are the group's."""
_TABLE = 256
"""Entries of bitsandbytes' table of 8-bit values."""


class OptimizerStateInvalid(ValueError):
    """The state is not one of this optimizer on these weights."""


@dataclass(frozen=True)
class OptimizerState:
    """All that an optimizer remembers of the steps so far."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By its own names."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Of its group, by their names (Prodigy's estimate), and ``step`` where it is no tensor."""

    def copy(self) -> OptimizerState:
        """The same in memory of its own, on the same device."""
        return OptimizerState(
            {name: tensor.clone() for name, tensor in self.tensors.items()}, dict(self.numbers)
        )


def require_optimizer(name: OptimizerName) -> None:
    """Make sure that the optimizer's library is there.

    Raises:
        TrainingFailed: INVALID_TASK, naming the extra to install.
    """
    library, extra = _LIBRARIES.get(name, (None, None))
    if library is not None and find_spec(library) is None:
        message = (
            f"optimizer {name} needs {library}, which is not installed here; "
            f"install it with pip install 'style-trainer[{extra}]', or leave optimizer out"
        )
        raise TrainingFailed(Failure(FailureCode.INVALID_TASK, message))


def optimizer_class(name: OptimizerName) -> str:
    """Where the optimizer's class is, as kohya's metadata names it."""
    return _CLASSES[name]


def build_optimizer(
    weights: torch.nn.Parameter, parameters: TrainingParameters
) -> torch.optim.Optimizer:
    """The optimizer asked for, over one tensor.

    Prodigy is set up as in diffusers' examples: bias correction, and safe with a warm-up.

    Raises:
        TrainingFailed: INVALID_TASK, when its library is not installed.
    """
    name = parameters.optimizer
    require_optimizer(name)
    rate, decay = parameters.learning_rate, parameters.weight_decay
    if name is OptimizerName.ADAMW:
        adamw = torch.optim.AdamW([weights], lr=rate, weight_decay=decay, fused=True)
        # Begun here, so that a checkpoint before the first step has it too.
        adamw.state[weights] = {
            "step": torch.zeros((), device=weights.device),
            "exp_avg": torch.zeros_like(weights),
            "exp_avg_sq": torch.zeros_like(weights),
        }
        return adamw
    if name is OptimizerName.ADAMW_8BIT:
        # On a CPU it looks for kernels on the hub and complains when there are none.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from bitsandbytes.optim import AdamW8bit

        quantised: torch.optim.Optimizer = AdamW8bit([weights], lr=rate, weight_decay=decay)
        return quantised
    from prodigyopt import Prodigy

    prodigy: torch.optim.Optimizer = Prodigy(
        [weights], lr=rate, decouple=True, use_bias_correction=True, safeguard_warmup=True
    )
    # Given to the constructor, it makes it print.
    prodigy.param_groups[0]["weight_decay"] = decay
    return prodigy


def state_of(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The state, sharing its tensors. Empty before the first step of those that begin lazily."""
    (group,) = optimizer.param_groups
    (weights,) = group["params"]
    state: Mapping[str, Any] = optimizer.state.get(weights, {})
    tensors = {name: value for name, value in state.items() if torch.is_tensor(value)}
    numbers = {name: value for name, value in group.items() if _is_number(name, value)}
    numbers |= {name: value for name, value in state.items() if _is_number(name, value)}
    return OptimizerState(tensors, numbers)


def restore_state(optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Put the optimizer where ``state`` was taken. Copies into the tensors that are there.

    Raises:
        OptimizerStateInvalid: it was taken of another optimizer or of other weights.
    """
    (group,) = optimizer.param_groups
    (weights,) = group["params"]
    own = optimizer.state[weights]
    tensors = {name for name, value in own.items() if torch.is_tensor(value)}
    if missing := tensors - state.tensors.keys():
        raise OptimizerStateInvalid(f"the optimizer's {min(missing)} is missing")
    for name, value in state.tensors.items():
        fits = name not in own or own[name].shape == value.shape
        if not fits or value.numel() > max(weights.numel(), _TABLE):
            raise OptimizerStateInvalid(f"the optimizer's {name} is {tuple(value.shape)}")
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
