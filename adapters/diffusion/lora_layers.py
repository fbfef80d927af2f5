"""LoRA (arXiv 2106.09685) on the layers of a UNet and a text encoder.

``PackedLora`` holds the LoRA weights of one or several styles and selects those that the layers
use at the moment. The layer classes below replace the frozen layers and share their weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.nn import functional

from adapters.diffusion.data.rng import generator_for
from adapters.diffusion.lora_function import LoraFunction
from adapters.diffusion.lora_targets import (
    TEXT_ENCODER_LAYERS,
    UNET_LAYERS,
    TargetLayers,
    layers_ending,
    shared_inputs,
)
from domain.parameters import TrainingParameters

Module = TypeVar("Module", bound=torch.nn.Module)


@dataclass(frozen=True)
class LoraMatrices:
    """One layer's LoRA: the layer adds ``up @ down``, times the scale."""

    down: torch.Tensor
    """(rank, inputs); of a convolution (rank, inputs, h, w)"""
    up: torch.Tensor
    """(outputs, rank); of a convolution (outputs, rank, 1, 1)"""
    magnitude: torch.Tensor | None = None
    """(outputs,): DoRA's length of each output's row."""


@dataclass(frozen=True)
class StyleLora:
    """One style's LoRA: a row of the packed weights, and its matrices by layer as views of it."""

    weights: torch.nn.Parameter
    """(n,), float32, with a gradient at a fixed address."""
    unet: dict[str, LoraMatrices]
    text_encoder: dict[str, LoraMatrices]
    unet_weights: torch.Tensor
    text_weights: torch.Tensor
    """The UNet's and the text encoder's part of ``weights``."""
    rank: int
    alpha: float
    """Other programs divide it by the rank to get the scale. With rsLoRA it is the requested alpha
    times the rank's square root."""


class PackedLora:
    """The LoRA weights of up to ``slots`` styles; selects those that the layers use at the moment.

    Outside ``training`` and ``showing`` the layers act as the base model's.

    Args:
        parameters: rank, scale, layers, dropout and DoRA, which all styles share.
        dtype: type in which the layers compute.
        merged: with one active style, add ``up @ down`` to a linear layer's weight first: fewer
            and larger products, for float32 on a CPU.
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        text_encoder: torch.nn.Module | None,
        parameters: TrainingParameters,
        *,
        slots: int,
        device: torch.device,
        dtype: torch.dtype,
        merged: bool = False,
    ) -> None:
        targets = parameters.lora_targets
        self.unet = layers_ending(unet, UNET_LAYERS[targets])
        self.text_encoder: TargetLayers = {}
        if text_encoder is not None:
            self.text_encoder = layers_ending(text_encoder, TEXT_ENCODER_LAYERS[targets])
        self.dropout, self.dora, self.merged = parameters.lora_dropout, parameters.use_dora, merged
        self.active: Sequence[LoraMatrices] | None = None
        """Each layer's matrices in this pass, stacked if they are of several styles; None if the
        layers act as the base model's."""
        self.active_downs: dict[int, torch.Tensor] = {}
        """Downs of layers that read the same input as one matrix, by the first layer's number."""
        self.in_training = False
        self._layers = [*self.unet.values(), *self.text_encoder.values()]
        self._rank, self._scale = parameters.rank, parameters.lora_scale
        # DoRA's magnitudes and the text encoder need float32; each layer casts the rest.
        exact = parameters.use_dora or bool(self.text_encoder)
        self._dtype = torch.float32 if exact else dtype
        self.plain = not (self.dropout or self.dora)
        numbers = {name: number for number, name in enumerate([*self.unet, *self.text_encoder])}
        groups = [*shared_inputs(unet, self.unet), *((name,) for name in self.text_encoder)]
        shapes = [_shapes(layer, self._rank, dora=self.dora) for layer in self._layers]
        self._groups = [
            _Group(own, [shapes[number] for number in own])
            for own in ([numbers[name] for name in group] for group in groups)
        ]
        pieces = [piece for group in self._groups for piece in group.pieces()]
        self._sizes = [size for size, _ in pieces]
        in_text = self._groups[len(groups) - len(self.text_encoder) :]
        self._text_size = sum(size for group in in_text for size, _ in group.pieces())
        self._scales = None
        if self._scale != 1.0:
            scales = [torch.full((size,), self._scale if up else 1.0) for size, up in pieces]
            self._scales = torch.cat(scales).to(device)
        self.weights = torch.nn.Parameter(torch.zeros(slots, sum(self._sizes), device=device))
        """(slots, n), float32: each style's downs, ups and magnitudes, group by group."""
        self.gradient = torch.zeros_like(self.weights)
        self.weights.grad = self.gradient
        self._slots = torch.arange(slots, device=device)

    def slot(self, number: int) -> torch.Tensor:
        """The slot's number on the device, (1,)."""
        return self._slots[number : number + 1]

    def new_style(self, slot: int, seed: int) -> StyleLora:
        """Put a fresh style into a slot: ``down`` Kaiming-uniform and ``up`` zero as in the
        paper's code, DoRA's magnitudes from the base. It leaves the layers' outputs unchanged
        until it is trained. Its weights depend on the seed alone."""
        row = self.weights.data[slot].zero_()
        weights = torch.nn.Parameter(row)
        weights.grad = self.gradient[slot].zero_()
        matrices, _ = self._matrices(torch.split(row, self._sizes))
        generator = generator_for(seed, "adapters")
        for layer, own in zip(self._layers, matrices, strict=True):
            fresh = torch.empty(own.down.shape)
            torch.nn.init.kaiming_uniform_(fresh, a=5**0.5, generator=generator)
            own.down.copy_(fresh)
            if own.magnitude is not None:
                own.magnitude.copy_(_lengths(layer.weight.float()))
        return StyleLora(
            weights,
            dict(zip(self.unet, matrices, strict=False)),
            dict(zip(self.text_encoder, matrices[len(self.unet) :], strict=True)),
            row[: len(row) - self._text_size],
            row[len(row) - self._text_size :],
            self._rank,
            self._scale * self._rank,
        )

    def training(self, slots: torch.Tensor) -> AbstractContextManager[None]:
        """In the with-block, batches hold equally many samples of the styles in these slots, (k,),
        in their order, and the packed weights get gradients."""
        return self._activated(self.weights, slots, in_training=True)

    def showing(self, slot: torch.Tensor) -> AbstractContextManager[None]:
        """In the with-block, batches use the current weights of the style in this slot, (1,),
        without dropout or gradient."""
        return self._activated(self.weights.detach(), slot, in_training=False)

    @contextmanager
    def _activated(
        self, weights: torch.Tensor, slots: torch.Tensor, *, in_training: bool
    ) -> Iterator[None]:
        """Copy the styles' weights once, and give each layer its matrices as views of the copy.

        One split for all layers matters: its backward is one concatenation.
        """
        if len(weights) > 1:
            weights = weights.index_select(0, slots)
        if self._scales is not None:
            weights = weights * self._scales
        pieces = torch.split(weights.to(self._dtype), self._sizes, dim=1)
        styles = (len(slots),) if len(slots) > 1 else ()
        self.active, self.active_downs = self._matrices(pieces, styles)
        self.in_training = in_training
        try:
            yield
        finally:
            # The matrices hold the node that adds to the packed gradient, which belongs to the
            # stream of its first use: if kept, it would break a capture on another stream.
            self.active, self.active_downs, self.in_training = None, {}, False

    def _matrices(
        self, pieces: Sequence[torch.Tensor], styles: tuple[int, ...] = ()
    ) -> tuple[list[LoraMatrices], dict[int, torch.Tensor]]:
        remaining = iter(pieces)
        matrices: dict[int, LoraMatrices] = {}
        stacked: dict[int, torch.Tensor] = {}
        for group in self._groups:
            (down, *more), *others = zip(*group.shapes, strict=True)
            together = next(remaining).view(*styles, -1, *down[1:])
            stacked[group.layers[0]] = together
            kinds = [torch.split(together, self._rank, dim=len(styles)) if more else [together]]
            kinds += [[next(remaining).view(*styles, *s) for s in shapes] for shapes in others]
            matrices |= zip(group.layers, map(LoraMatrices, *kinds), strict=True)
        return [matrices[number] for number in range(len(self._layers))], stacked


Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Group:
    """Layers that read the same input. Their matrices are adjacent."""

    layers: Sequence[int]
    shapes: Sequence[Sequence[Shape]]
    """Each layer's down, up and, with DoRA, magnitude."""

    def pieces(self) -> list[tuple[int, bool]]:
        """Sizes in memory order, and whether each is an up matrix. All downs are one piece."""
        downs, *others = [[math.prod(s) for s in kind] for kind in zip(*self.shapes, strict=True)]
        rest = [(size, kind == 0) for kind, sizes in enumerate(others) for size in sizes]
        return [(sum(downs), False), *rest]


def _shapes(layer: torch.nn.Linear | torch.nn.Conv2d, rank: int, *, dora: bool) -> list[Shape]:
    outputs, inputs, *kernel = layer.weight.shape
    ones = [1] * len(kernel)
    shapes: list[Shape] = [(rank, inputs, *kernel), (outputs, rank, *ones)]
    return [*shapes, (outputs,)] if dora else shapes


def stand_in(kind: type[Module], layer: torch.nn.Module) -> Module:
    """An instance of ``kind`` with the weights, layers and settings of another module."""
    other = kind.__new__(kind)
    other.__dict__.update(layer.__dict__)
    return other


class LoraLinear(torch.nn.Linear):
    """A frozen linear layer with LoRA."""

    lora: PackedLora
    number: int
    """The layer's place in ``PackedLora.active``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.lora.active is None:
            return super().forward(x)
        own = self.lora.active[self.number]
        if self.lora.merged and own.down.ndim == 2:
            return functional.linear(x, torch.addmm(self.weight, own.up, own.down), self.bias)
        down, up = own.down.to(x.dtype), own.up.to(x.dtype)
        # torch has no types for it.
        y: torch.Tensor = LoraFunction.apply(x, down, self.weight, self.bias, up)[0]  # type: ignore[no-untyped-call]
        return y


class LoraLinearVariant(LoraLinear):
    """``LoraLinear`` with dropout of the LoRA's input, with DoRA, or both."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.Linear.forward(self, x)
        if self.lora.active is None:
            return y
        own = self.lora.active[self.number]
        low = functional.linear(_dropped(x, self.lora), own.down.to(x.dtype))
        change = functional.linear(low, own.up.to(x.dtype))
        return y + change if own.magnitude is None else _dora(y, change, self, own)


class LoraConv2d(torch.nn.Conv2d):
    """A frozen convolution with LoRA, dropout and DoRA."""

    lora: PackedLora
    number: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if self.lora.active is None:
            return y
        own = self.lora.active[self.number]
        down, up = own.down.to(x.dtype), own.up.to(x.dtype)
        low = functional.conv2d(
            _dropped(x, self.lora), down, None, self.stride, self.padding, self.dilation
        )
        change = functional.conv2d(low, up)
        return y + change if own.magnitude is None else _dora(y, change, self, own)


def project(x: torch.Tensor, layers: Sequence[torch.nn.Module]) -> Sequence[torch.Tensor]:
    """Each layer's output for one x. LoRA layers with adjacent matrices share products: one for
    all their downs, and the gradient of ``x`` is summed in place."""
    lora_layers = [layer for layer in layers if isinstance(layer, LoraLinear)]
    first = lora_layers[0] if lora_layers else None
    if first is None or first.lora.active is None or not first.lora.plain:
        return [layer(x) for layer in layers]
    ups = [first.lora.active[layer.number].up.to(x.dtype) for layer in lora_layers]
    weights = [layer.weight for layer in lora_layers]
    biases = [layer.bias for layer in lora_layers]
    downs = first.lora.active_downs[first.number].to(x.dtype)
    # torch has no types for it.
    ys: tuple[torch.Tensor, ...] = LoraFunction.apply(  # type: ignore[no-untyped-call]
        x, downs, *weights, *biases, *ups
    )
    return ys


def _dropped(x: torch.Tensor, lora: PackedLora) -> torch.Tensor:
    return functional.dropout(x, lora.dropout) if lora.dropout and lora.in_training else x


def _dora(
    y: torch.Tensor, change: torch.Tensor, layer: LoraLinear | LoraConv2d, own: LoraMatrices
) -> torch.Tensor:
    """Scale each output's row of ``weight + up down`` to its magnitude. The row's own length is
    treated as a constant (arXiv 2402.09353, section 4.3).

    Args:
        y: the frozen layer's output.
        change: the LoRA's addition to it.
    """
    assert own.magnitude is not None
    update = (own.up.flatten(1) @ own.down.flatten(1)).detach().view(layer.weight.shape)
    lengths = _lengths(layer.weight.float() + update)
    wide = (-1, 1, 1) if layer.weight.ndim == 4 else (-1,)
    # Subtracted before rounding: 16 bits hold few numbers near 1, and many near 0.
    extra = (own.magnitude / lengths - 1).to(y.dtype).view(wide)
    plain = y if layer.bias is None else y - layer.bias.view(wide)
    # In this form a factor of 1 leaves the output unchanged, bit for bit.
    return y + extra * plain + (1 + extra) * change


def _lengths(weight: torch.Tensor) -> torch.Tensor:
    lengths: torch.Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return lengths


@contextmanager
def lora_installed(
    unet: torch.nn.Module, text_encoder: torch.nn.Module | None, lora: PackedLora
) -> Iterator[None]:
    """In the with-block, LoRA layers replace the frozen layers whose weights they share. Restores
    the original layers on leaving."""
    linear = LoraLinear if lora.plain else LoraLinearVariant
    replaced: list[tuple[torch.nn.Module, str, torch.nn.Module]] = []
    try:
        places = [(unet, name, layer) for name, layer in lora.unet.items()]
        if text_encoder is not None:
            places += [(text_encoder, name, layer) for name, layer in lora.text_encoder.items()]
        for number, (model, name, layer) in enumerate(places):
            parent, _, child = name.rpartition(".")
            place = model.get_submodule(parent)
            convolution = isinstance(layer, torch.nn.Conv2d)
            kind: type[LoraLinear | LoraConv2d] = LoraConv2d if convolution else linear
            own = stand_in(kind, layer)
            own.lora, own.number = lora, number
            setattr(place, child, own)
            replaced.append((place, child, layer))
        yield
    finally:
        for place, child, frozen in replaced:
            setattr(place, child, frozen)


@contextmanager
def dropout_rng(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """In the with-block, dropout depends on the seed and the step alone."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(generator_for(seed, "dropout", step).initial_seed())
        yield
