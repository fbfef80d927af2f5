"""Handle out-of-memory errors of the device.

A step that does not fit is repeated with less memory: fewer styles per pass, then fewer images per
pass, then recomputed feature maps. The gradient is the same each time. A run that still does not
fit fails with GPU_OOM.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from adapters.common.device_memory import gpu_oom, is_out_of_memory, oom_fails_the_run
from domain.failure import TrainingFailed

if TYPE_CHECKING:
    from adapters.diffusion.session import DiffusionSession
    from adapters.diffusion.training_model import TrainingModel

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class MemoryPlan:
    """How a run's steps save memory. Stored in the checkpoint."""

    micro_batch: int
    """Images per forward pass; a batch's gradients are summed over its passes."""
    checkpointing: bool = False
    """Recompute feature maps in the backward pass instead of keeping them (arXiv 1604.06174)."""

    def reduced(self, count: int) -> MemoryPlan | None:
        """The next smaller plan for a batch of ``count`` images; None when there is none."""
        held = min(self.micro_batch, count)
        if held > 1:
            return MemoryPlan(-(-held // 2), self.checkpointing)
        if not self.checkpointing:
            return MemoryPlan(1, checkpointing=True)
        return None

    def __str__(self) -> str:
        images = f"{self.micro_batch} image{'s' * (self.micro_batch != 1)} at a time"
        return f"{images}, recomputing feature maps" if self.checkpointing else images


def group_by_shape(runs: Sequence[DiffusionSession]) -> list[list[DiffusionSession]]:
    """Group the runs whose next batches can share a pass, ordered by slot so that equal groups
    give equal sums. A run whose memory plan is reduced gets a pass of its own."""
    groups: dict[Hashable, list[DiffusionSession]] = {}
    for run in sorted(runs, key=lambda run: run.slot):
        shape = run.slot if run.reduced else run.batches.shape(run.step)
        groups.setdefault(shape, []).append(run)
    return list(groups.values())


def reduce_memory(
    model: TrainingModel, group: Sequence[DiffusionSession], tried: int
) -> TrainingFailed | None:
    """Make the next attempt at a step smaller.

    Args:
        group: the runs of one shape that have not been trained yet.
        tried: number of runs in the pass that did not fit.

    Returns:
        The first run's failure, if it cannot use less.
    """
    for run in group:
        run.discard_gradient()
    if tried > 1:
        model.runs_per_pass = -(-tried // 2)
        log.warning("out of memory, continuing with %d runs in one pass", model.runs_per_pass)
        model.free_graphs()
        return None
    run = group[0]
    if model.evaluation_graphs.stop("steps need the memory"):
        return None
    plan = run.memory.reduced(run.batches.shape(run.step)[0])
    if plan is None:
        return None if model.free_graphs() else gpu_oom(retryable=model.runs > 1)
    log.warning("step %d: out of memory, continuing with %s", run.step + 1, plan)
    run.memory = plan
    model.free_graphs()
    return None


def retry_after_freeing(model: TrainingModel, action: Callable[[], Result]) -> Result:
    """Run ``action``; on out-of-memory drop the recorded graphs and retry once.

    Raises:
        TrainingFailed: GPU_OOM at the second attempt; retryable if other runs are open.
    """
    try:
        return action()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    model.free_graphs()
    with oom_fails_the_run(retryable=model.runs > 1):
        return action()
