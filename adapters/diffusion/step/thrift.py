"""How a run saves memory once it has met the end of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thrift:
    """What a step may hold at a time. Every degree gives the same gradient."""

    micro_batch: int
    """Images per forward pass; the gradients of a batch's passes add up."""
    checkpointing: bool = False
    """Recompute feature maps in the backward pass instead of keeping them (arXiv 1604.06174)."""

    def tighter(self, count: int) -> Thrift | None:
        """The next degree for a batch of ``count``; None when there is no further one."""
        held = min(self.micro_batch, count)
        if held > 1:
            return Thrift(-(-held // 2), self.checkpointing)
        if not self.checkpointing:
            return Thrift(1, checkpointing=True)
        return None

    def __str__(self) -> str:
        images = f"{self.micro_batch} image{'s' * (self.micro_batch != 1)} at a time"
        return f"{images}, recomputing feature maps" if self.checkpointing else images
