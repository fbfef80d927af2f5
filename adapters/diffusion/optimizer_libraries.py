"""The libraries of the optimizers outside torch. Does not import torch."""

from __future__ import annotations

from importlib.util import find_spec

from domain.failure import Failure, FailureCode, TrainingFailed
from domain.parameters import OptimizerName

_LIBRARIES = {
    OptimizerName.ADAMW_8BIT: ("bitsandbytes", "adam8bit"),
    OptimizerName.PRODIGY: ("prodigyopt", "prodigy"),
}
"""For each optimizer outside torch: its library, and our extra that installs it."""


def require_optimizer(name: OptimizerName) -> None:
    """Check that the optimizer's library is installed.

    Raises:
        TrainingFailed: INVALID_TASK.
    """
    if missing_extra(name) is not None:
        message = f"The optimizer {name} is not available here. Please choose another."
        raise TrainingFailed(Failure(FailureCode.INVALID_TASK, message))


def missing_extra(name: OptimizerName) -> str | None:
    """Our extra that installs the optimizer's library; None if the library is there."""
    library, extra = _LIBRARIES.get(name, (None, None))
    return extra if library is not None and find_spec(library) is None else None
