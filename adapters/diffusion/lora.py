"""Put LoRA adapters (arXiv 2106.09685) on a denoiser's attention, and take them off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from adapters.diffusion.epoch_plan import generator_for

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of every attention, self and cross."""
_NAME = "style"


@dataclass(frozen=True)
class Adapter:
    """One layer's pair of matrices: the layer adds ``alpha / rank * up @ down``."""

    layer: LoraLayer
    down: torch.nn.Parameter
    """(rank, inputs)"""
    up: torch.nn.Parameter
    """(outputs, rank)"""


@dataclass(frozen=True)
class Adapters:
    """All adapters of a denoiser, by the name of the layer that each is on."""

    by_layer: dict[str, Adapter]
    flat: torch.nn.Parameter
    """Every matrix end to end, float32. The matrices are views of it and their gradients are
    views of its gradient, so that clipping and the optimizer work on one tensor, not hundreds."""
    rank: int
    alpha: float

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """While open, the denoiser is the base model's."""
        self._switch(on=False)
        try:
            yield
        finally:
            self._switch(on=True)

    def _switch(self, *, on: bool) -> None:
        for adapter in self.by_layer.values():
            adapter.layer.enable_adapters(on)


@contextmanager
def attached(
    unet: UNet2DConditionModel, *, rank: int, alpha: float, seed: int
) -> Iterator[Adapters]:
    """While open, ``unet`` carries fresh adapters in float32, the only weights to be trained.

    ``down`` starts Kaiming-uniform and ``up`` at zero, as in the paper's code, so that the
    start is the base model; both depend on the seed alone. On leaving, the denoiser is what it
    was, bit for bit.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS))
    # PEFT draws initial weights from the global generator; the ones kept are drawn below.
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, unet, adapter_name=_NAME)
    try:
        by_layer = {
            name: Adapter(layer, layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight)
            for name, layer in unet.named_modules()
            if isinstance(layer, LoraLayer)
        }
        flat = _gather(list(by_layer.values()), unet.device)
        _initialise(list(by_layer.values()), seed)
        if unet.device.type == "cpu" and unet.dtype == torch.float32:
            for adapter in by_layer.values():
                _fold(adapter, alpha / rank)
        yield Adapters(by_layer, flat, rank, alpha)
    finally:
        unet.unload_lora()


def _fold(adapter: Adapter, scale: float) -> None:
    """While gradients are recorded, compute ``(W + scale * up @ down) x`` in one product.

    The same function as PEFT's ``W x + scale * up (down x)`` in fewer and larger operations: on a
    CPU and a narrow denoiser a sixth of the step's time. In bfloat16 the sum would round the
    adapters away, so it is for float32 only.
    """
    layer, separate = adapter.layer, adapter.layer.forward
    weight, bias = layer.base_layer.weight, layer.base_layer.bias

    def forward(x: torch.Tensor) -> torch.Tensor:
        if layer.disable_adapters or not torch.is_grad_enabled():
            plain: torch.Tensor = separate(x)
            return plain
        folded = torch.addmm(weight, adapter.up, adapter.down, alpha=scale)
        product: torch.Tensor = torch.nn.functional.linear(x, folded, bias)
        return product

    layer.forward = forward


def _gather(adapters: list[Adapter], device: torch.device) -> torch.nn.Parameter:
    """Give all matrices one piece of memory, and their gradients another."""
    matrices = [matrix for adapter in adapters for matrix in (adapter.down, adapter.up)]
    sizes = [matrix.numel() for matrix in matrices]
    flat = torch.nn.Parameter(torch.zeros(sum(sizes), device=device))
    flat.grad = torch.zeros_like(flat)
    pieces = zip(torch.split(flat.data, sizes), torch.split(flat.grad, sizes), strict=True)
    for matrix, (values, gradient) in zip(matrices, pieces, strict=True):
        matrix.data = values.view(matrix.shape)
        matrix.grad = gradient.view(matrix.shape)
    return flat


def _initialise(adapters: list[Adapter], seed: int) -> None:
    generator = generator_for(seed, "adapters")
    for adapter in adapters:
        fresh = torch.empty(adapter.down.shape)
        torch.nn.init.kaiming_uniform_(fresh, a=5**0.5, generator=generator)
        adapter.down.data.copy_(fresh)
