"""The adapters computed from one copy of all their matrices, for one style or several at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch

from adapters.diffusion.lora.adapters import Adapters
from adapters.diffusion.lora.joint import Projection, one_by_one
from adapters.diffusion.lora.low_rank import adapted

Group = tuple[int, ...]
"""Sites that read the same x, by their numbers."""


@dataclass(frozen=True)
class Site:
    """A linear layer with an adapter."""

    module: torch.nn.Module
    """What the denoiser calls."""
    linear: torch.nn.Linear
    """Its frozen layer: the module itself, or what PEFT has wrapped."""


def shapes_of(sites: Sequence[Site], rank: int) -> list[tuple[int, int]]:
    """Of each site's down and up, in the order in which they lie in memory."""
    return [
        shape
        for site in sites
        for shape in ((rank, site.linear.in_features), (site.linear.out_features, rank))
    ]


class FlatPath:
    """Low-precision matrices of every adapter, cast in one go and split into views. Those of
    layers that read the same x lie side by side, so that one product serves all their downs.

    Where several styles take part, a batch holds the same number of samples of each, in their
    order, and each sample sees its own style's matrices by batched products.

    Args:
        leaf: all matrices of one style, (n,), or of several, (styles, n), float32: per style each
            layer's down (rank, inputs) and up (outputs, rank), layer after layer.
        scale: alpha / rank.
        dtype: of the frozen weights.
        taken: whether layers are to be computed so at the moment, or work by themselves.
    """

    def __init__(
        self,
        leaf: torch.nn.Parameter,
        sites: Sequence[Site],
        *,
        rank: int,
        scale: float,
        dtype: torch.dtype,
        taken: Callable[[], bool],
    ) -> None:
        self.taken = taken
        self._leaf = leaf
        self._sites = sites
        self._scale = scale
        self._dtype = dtype
        self._shapes = shapes_of(sites, rank)
        self._sizes = [rows * columns for rows, columns in self._shapes]
        self._ends = list(accumulate(self._sizes))
        self._factors = self._of_scale() if scale != 1.0 else None
        self._numbers = {site.module: index for index, site in enumerate(sites)}
        self._groups: dict[Group, list[tuple[int, int]]] = {
            (index,): self._shapes_of((index,)) for index in range(len(sites))
        }
        """The shapes of each group's matrices."""
        self._matrices: dict[Group, list[torch.Tensor]] = {}

    def joined(self, layers: Sequence[torch.nn.Module]) -> Projection:
        """Layers that read the same x, as one: what gives the answers of all. A layer that has
        been joined is to be asked with the others from then on.

        Where one of them is no site, each works by itself.
        """
        separate = one_by_one(layers)
        if not self._numbers.keys() >= set(layers):
            return separate
        group = tuple(self._numbers[layer] for layer in layers)
        others = {g: shapes for g, shapes in self._groups.items() if not set(group) & set(g)}
        self._groups = {**others, group: self._shapes_of(group)}
        return lambda x: self.apply(group, x) if self.taken() else separate(x)

    def refresh(self, rows: torch.Tensor | None = None) -> None:
        """Take the weights as they are now. Call before each forward pass that has a backward.

        Splitting in one operation matters: its backward is one concatenation, whose own are
        views. The last pass's matrices go first: their graph holds the node that adds to the
        leaf's gradient, which belongs to the stream of its first pass and cannot be captured on
        another.

        Args:
            rows: the styles that take part, (k,), on the device; None for all.
        """
        self.release()
        stack = self._by_style
        if rows is not None:
            stack = stack.index_select(0, rows)
        if self._factors is not None:
            stack = stack * self._factors
        stack = self._by_group(stack.to(self._dtype))
        sizes = [math.prod(shape) for shapes in self._groups.values() for shape in shapes]
        pieces = iter(torch.split(stack, sizes, dim=1))
        several = (len(stack),) if len(stack) > 1 else ()
        self._matrices = {
            group: [next(pieces).view(*several, *shape) for shape in shapes]
            for group, shapes in self._groups.items()
        }

    def _by_group(self, stack: torch.Tensor) -> torch.Tensor:
        """(styles, n), group after group: the downs of each, then its ups."""
        pieces = torch.split(stack, self._sizes, dim=1)
        return torch.cat(
            [
                pieces[2 * index + side]
                for group in self._groups
                for side in (0, 1)
                for index in group
            ],
            dim=1,
        )

    def _shapes_of(self, group: Group) -> list[tuple[int, int]]:
        """Of a group's downs, one below the other, and of each up."""
        rank, inputs = self._shapes[2 * group[0]]
        return [(len(group) * rank, inputs), *(self._shapes[2 * index + 1] for index in group)]

    @property
    def _by_style(self) -> torch.Tensor:
        return self._leaf.view(-1, self._ends[-1])

    def _of_scale(self) -> torch.Tensor:
        """The scale at each number of an up, 1 at those of a down: (n,)."""
        return torch.cat(
            [
                torch.full((size,), self._scale if index % 2 else 1.0, device=self._leaf.device)
                for index, size in enumerate(self._sizes)
            ]
        )

    def release(self) -> None:
        """Let go of the copy."""
        self._matrices = {}

    def apply(self, group: Group, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the sites of a group give for ``x``, (styles * n, ..., inputs)."""
        downs, *ups = self._matrices[group]
        return adapted(x, [self._sites[index].linear for index in group], downs, ups)

    def apply_one(self, index: int, x: torch.Tensor, style: int) -> torch.Tensor:
        """The same for a batch of one style, from the weights as they are now; no gradient."""
        linear = self._sites[index].linear
        row = self._by_style.detach()[style]
        down, up = (
            row[self._ends[at] - self._sizes[at] : self._ends[at]].view(self._shapes[at])
            for at in (2 * index, 2 * index + 1)
        )
        plain = torch.nn.functional.linear(x, linear.weight, linear.bias)
        low = torch.nn.functional.linear(x, down.to(x.dtype)) * self._scale
        return plain + torch.nn.functional.linear(low, up.to(x.dtype))


def suits(adapters: Adapters, dropout: float) -> bool:
    """Whether these adapters are plain products on linear layers, which is all the path knows."""
    return (
        not dropout
        and not adapters.of_text
        and all(
            adapter.magnitude is None and isinstance(adapter.layer.base_layer, torch.nn.Linear)
            for adapter in adapters.by_layer.values()
        )
    )


@contextmanager
def flat_path_of(adapters: Adapters, dtype: torch.dtype) -> Iterator[FlatPath]:
    """While open, PEFT's layers take the flat path wherever gradients are recorded.

    Without gradients (previews) and with the adapters switched off they work as PEFT has them.
    """
    sites = [
        Site(adapter.layer, adapter.layer.base_layer) for adapter in adapters.by_layer.values()
    ]
    scale = adapters.alpha / adapters.rank
    first = next(iter(adapters.by_layer.values())).layer  # all are switched at once
    path = FlatPath(
        adapters.flat,
        sites,
        rank=adapters.rank,
        scale=scale,
        dtype=dtype,
        taken=lambda: torch.is_grad_enabled() and not first.disable_adapters,
    )
    for index, site in enumerate(sites):
        _reroute(site.module, path, index)
    try:
        yield path
    finally:
        path.release()
        for site in sites:
            site.module.__dict__.pop("forward", None)


def _reroute(layer: torch.nn.Module, path: FlatPath, index: int) -> None:
    separate = layer.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if path.taken():
            return path.apply((index,), x)[0]
        plain: torch.Tensor = separate(x)
        return plain

    layer.forward = forward
