"""How many styles a card has room for at a time."""

from __future__ import annotations

MOST_SEATS = 8
"""As many as ``benchmarks.gpu`` is to be run with before more are tried."""
_GIB = 2**30
_FIXED = 3.5 * _GIB
"""Base model in 16 bits, the encoders on their visit, libraries' workspaces."""
_OF_STYLE = 1.25 * _GIB
"""Feature maps of one picture at 512 px, its style's weights and optimizer."""


def seats_in(memory: int) -> int:
    """Seats on a card with so many bytes, for Stable Diffusion 1.5 at 512 px, one picture a step.

    By arithmetic (``tests/diffusion/test_memory_arithmetic.py`` counts what a step keeps), and
    cautious: larger batches and pictures take more, and the passes are made smaller then.
    """
    return max(1, min(MOST_SEATS, int((memory - _FIXED) / _OF_STYLE)))
