"""Adapters of several styles on one denoiser, their matrices stacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel

from adapters.diffusion.flat_path import FlatPath, Site, shapes_of
from adapters.diffusion.lora import Adapter, Adapters, initialise, layers_of
from domain.parameters import TrainingParameters

_OFF = -1
"""In place of a style: the base model alone."""


class Stack:
    """The weights of all styles, and which of them the denoiser shows."""

    def __init__(self, leaf: torch.nn.Parameter, path: FlatPath) -> None:
        self.leaf = leaf
        """(styles, n), float32; each style's weights and gradient are a row."""
        self.path = path
        self._shown: int | None = None

    @contextmanager
    def showing(self, style: int) -> Iterator[None]:
        """While open, whole batches are of one style, without gradients."""
        before, self._shown = self._shown, style
        try:
            yield
        finally:
            self._shown = before

    def forward(self, index: int, linear: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """What the ``index``-th layer gives."""
        if self._shown is None:
            return self.path.apply(index, x)
        if self._shown == _OFF:
            return torch.nn.functional.linear(x, linear.weight, linear.bias)
        return self.path.apply_one(index, x, self._shown)


@dataclass(frozen=True, kw_only=True)
class StackedAdapters(Adapters):
    """One style's part of a stack."""

    stack: Stack

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """While open, the denoiser is the base model's."""
        with self.stack.showing(_OFF):
            yield


@contextmanager
def stacked(
    unet: UNet2DConditionModel, jobs: Sequence[TrainingParameters], dtype: torch.dtype
) -> Iterator[tuple[Stack, list[StackedAdapters]]]:
    """While open, ``unet`` carries fresh adapters of every job, each as it would be alone.

    Args:
        jobs: alike in what ``together.likeness`` compares.
        dtype: of the frozen weights.
    """
    first = jobs[0]
    layers = layers_of(unet, first.lora_targets)
    sites = [Site(layer, layer) for layer in layers.values() if isinstance(layer, torch.nn.Linear)]
    shapes = shapes_of(sites, first.rank)
    sizes = [rows * columns for rows, columns in shapes]
    leaf = torch.nn.Parameter(torch.zeros(len(jobs), sum(sizes), device=unet.device))
    leaf.grad = torch.zeros_like(leaf)
    scale = first.lora_scale
    path = FlatPath(leaf, sites, rank=first.rank, scale=scale, dtype=dtype, styles=len(jobs))
    stack = Stack(leaf, path)
    styles = []
    for row, parameters in enumerate(jobs):
        flat = torch.nn.Parameter(leaf.data[row])
        flat.grad = leaf.grad[row]
        matrices = [
            torch.nn.Parameter(piece.view(shape))
            for piece, shape in zip(torch.split(flat.data, sizes), shapes, strict=True)
        ]
        by_layer = {
            name: Adapter(site.module, down, up)
            for name, site, down, up in zip(
                layers, sites, matrices[::2], matrices[1::2], strict=True
            )
        }
        initialise(list(by_layer.values()), parameters.seed)
        styles.append(StackedAdapters(by_layer, flat, first.rank, scale * first.rank, stack=stack))
    for index, site in enumerate(sites):
        _reroute(site.linear, stack, index)
    try:
        yield stack, styles
    finally:
        path.release()
        for site in sites:
            site.module.__dict__.pop("forward", None)


def _reroute(linear: torch.nn.Linear, stack: Stack, index: int) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return stack.forward(index, linear, x)

    linear.forward = forward  # type: ignore[method-assign,assignment]
