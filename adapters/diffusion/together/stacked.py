"""Adapters of several styles on one denoiser, their matrices stacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel

from adapters.diffusion.lora.adapters import Adapter, Adapters, initialise, layers_of
from adapters.diffusion.lora.flat_path import FlatPath, Site, shapes_of
from domain.parameters import TrainingParameters

_OFF = -1
"""In place of a row: the base model alone."""


class Stack:
    """Rows of weights, one a style, and what of them the denoiser shows.

    Args:
        like: what is the same of all styles: rank, scale, targets.
        dtype: of the frozen weights.
    """

    def __init__(
        self, unet: UNet2DConditionModel, like: TrainingParameters, rows: int, dtype: torch.dtype
    ) -> None:
        self._rank, self._scale = like.rank, like.lora_scale
        self._layers = layers_of(unet, like.lora_targets)
        self.sites = [
            Site(layer, layer)
            for layer in self._layers.values()
            if isinstance(layer, torch.nn.Linear)
        ]
        self._shapes = shapes_of(self.sites, self._rank)
        self._sizes = [many * few for many, few in self._shapes]
        self.leaf = torch.nn.Parameter(torch.zeros(rows, sum(self._sizes), device=unet.device))
        """(rows, n), float32; each style's weights and gradient are a row."""
        self.leaf.grad = torch.zeros_like(self.leaf)
        self._path = FlatPath(
            self.leaf,
            self.sites,
            rank=self._rank,
            scale=self._scale,
            dtype=dtype,
            taken=lambda: torch.is_grad_enabled() or self._shown is None,
        )
        self.joined = self._path.joined
        self._indices = torch.arange(rows, device=unet.device)
        self._shown: int | None = None

    def fresh(self, row: int, parameters: TrainingParameters) -> StackedAdapters:
        """A row as the adapters of a style that begins: as they would be alone."""
        assert self.leaf.grad is not None
        self.leaf.data[row].zero_()
        self.leaf.grad[row].zero_()
        flat = torch.nn.Parameter(self.leaf.data[row])
        flat.grad = self.leaf.grad[row]
        matrices = [
            torch.nn.Parameter(piece.view(shape))
            for piece, shape in zip(torch.split(flat.data, self._sizes), self._shapes, strict=True)
        ]
        by_layer = {
            name: Adapter(site.module, down, up)
            for name, site, down, up in zip(
                self._layers, self.sites, matrices[::2], matrices[1::2], strict=True
            )
        }
        initialise(list(by_layer.values()), parameters.seed)
        alpha = self._scale * self._rank
        return StackedAdapters(by_layer, flat, self._rank, alpha, stack=self, row=row)

    def indices(self, rows: Sequence[int]) -> torch.Tensor:
        """The rows' numbers on the device, (len(rows),), made from what lies there already."""
        return torch.stack([self._indices[row] for row in rows])

    def refresh(self, rows: torch.Tensor) -> None:
        """Take the rows' weights as they are now. Call before each pass that has a backward."""
        self._path.refresh(rows)

    @contextmanager
    def showing(self, row: int) -> Iterator[None]:
        """While open, whole batches without gradients are of one style."""
        before, self._shown = self._shown, row
        try:
            yield
        finally:
            self._shown = before

    def forward(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """What the ``index``-th layer gives."""
        if self._path.taken():
            return self._path.apply((index,), x)[0]
        assert self._shown is not None
        if self._shown == _OFF:
            linear = self.sites[index].linear
            return torch.nn.functional.linear(x, linear.weight, linear.bias)
        return self._path.apply_one(index, x, self._shown)

    def release(self) -> None:
        """Let go of the copy of the weights."""
        self._path.release()


@dataclass(frozen=True, kw_only=True)
class StackedAdapters(Adapters):
    """One style's part of a stack."""

    stack: Stack
    row: int

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """While open, the denoiser is the base model's."""
        with self.stack.showing(_OFF):
            yield


@contextmanager
def stacked(
    unet: UNet2DConditionModel, like: TrainingParameters, rows: int, dtype: torch.dtype
) -> Iterator[Stack]:
    """While open, ``unet`` takes its adapters from a stack. See ``Stack`` for the arguments."""
    stack = Stack(unet, like, rows, dtype)
    for index, site in enumerate(stack.sites):
        _reroute(site.linear, stack, index)
    try:
        yield stack
    finally:
        stack.release()
        for site in stack.sites:
            site.module.__dict__.pop("forward", None)


def _reroute(linear: torch.nn.Linear, stack: Stack, index: int) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return stack.forward(index, x)

    # An instance's own forward is how torch lets one layer behave otherwise.
    linear.forward = forward  # type: ignore[method-assign,assignment]
