"""How many styles a card has room for at a time."""

from __future__ import annotations

MAX_JOBS = 8
"""More than a card gains from: a batch of 8 keeps an H200 busy."""
_GIB = 2**30
_FIXED = 3.5 * _GIB
"""Base model in 16 bits, the encoders on their visit, libraries' workspaces: so much has a job
of one image a step at most, on an H200."""
_OF_STYLE = 0.75 * _GIB
"""Feature maps of one image at 512 px, its style's weights and optimizer. There each further
image of a batch took 0.6."""


def max_jobs_for_memory(memory: int) -> int:
    """Slots on a card with so many bytes, for Stable Diffusion 1.5 at 512 px, one image a step.

    By what ``benchmarks.gpu`` has measured. Larger batches and images take more, and the passes
    are made smaller then.
    """
    return max(1, min(MAX_JOBS, int((memory - _FIXED) / _OF_STYLE)))
