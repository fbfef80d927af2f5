"""How many jobs fit into a GPU's memory at once."""

from __future__ import annotations

MAX_JOBS = 8
"""More jobs gain nothing: a batch of 8 keeps an H200 busy."""
_GIB = 2**30
_FIXED = 3.5 * _GIB
"""Base model in 16 bits, the encoders while they encode, and libraries' workspaces: the maximum
measured on an H200 for a job of one image per step."""
_OF_STYLE = 0.75 * _GIB
"""Feature maps of one image at 512 px, and the weights and optimizer of its style. On an H200
each further image of a batch took 0.6 GiB."""


def max_jobs_for_memory(memory: int) -> int:
    """Slots on a GPU of ``memory`` bytes, for Stable Diffusion 1.5 at 512 px, one image per step.

    Based on measurements by ``benchmarks.gpu``. Larger batches and images take more; their passes
    are then split.
    """
    return max(1, min(MAX_JOBS, int((memory - _FIXED) / _OF_STYLE)))
