"""Layers with the same input, fused: the results of separate layers in fewer calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from adapters.diffusion.lora_function import LoraFunction

INPUTS, RANK, OUTPUTS = 12, 2, (8, 6, 6)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="waits for a CUDA device"),
        ],
    ),
]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def linears() -> list[torch.nn.Linear]:
    """Frozen linear layers, the last one without a bias."""
    torch.manual_seed(1)
    layers = [torch.nn.Linear(INPUTS, outputs, dtype=torch.float64) for outputs in OUTPUTS[:2]]
    layers.append(torch.nn.Linear(INPUTS, OUTPUTS[2], bias=False, dtype=torch.float64))
    for layer in layers:
        layer.requires_grad_(False)
    return layers


def lora_linear(
    x: torch.Tensor,
    layers: Sequence[torch.nn.Linear],
    downs: torch.Tensor,
    ups: Sequence[torch.Tensor],
) -> Sequence[torch.Tensor]:
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    return LoraFunction.apply(x, downs, *weights, *biases, *ups)


def by_the_book(
    x: torch.Tensor,
    layers: Sequence[torch.nn.Linear],
    downs: Sequence[torch.Tensor],
    ups: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    return [
        layer(x) + x @ down.mT @ up.mT for layer, down, up in zip(layers, downs, ups, strict=True)
    ]


def gradients(outputs: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of a loss in which every output value has its own random weight."""
    loss = sum((y * normal(*y.shape, seed=5).to(y)).sum() for y in outputs)
    assert isinstance(loss, torch.Tensor)
    return list(torch.autograd.grad(loss, of))


@pytest.mark.parametrize("styles", [(), (3,)])
@pytest.mark.parametrize("x_moves", [True, False])
@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize("device", DEVICES)
def test_values_and_gradients_match_autograd(
    styles: tuple[int, ...], x_moves: bool, dtype: torch.dtype, within: float, device: str
) -> None:
    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype).double()

    layers = linears()
    for parameter in (parameter for layer in layers for parameter in layer.parameters()):
        parameter.data = rounded(parameter.data)
    x = rounded(normal(*styles, 5, INPUTS)).requires_grad_(x_moves)
    downs = [rounded(normal(*styles, RANK, INPUTS, seed=s)).requires_grad_() for s in (1, 2, 3)]
    ups = [
        rounded(normal(*styles, outputs, RANK, seed=outputs)).requires_grad_()
        for outputs in OUTPUTS
    ]
    moving = [*([x] if x_moves else []), *downs, *ups]
    wanted = by_the_book(x, layers, downs, ups)
    wanted_gradients = gradients(wanted, moving)

    on: dict[str, Any] = {"device": device, "dtype": dtype}
    joint = torch.cat([down.to(**on) for down in downs], dim=-2)
    found = lora_linear(
        x.to(**on), [layer.to(**on) for layer in layers], joint, [up.to(**on) for up in ups]
    )
    for one, other in zip(
        [*found, *gradients(found, moving)], [*wanted, *wanted_gradients], strict=True
    ):
        size = other.abs().max().item()
        torch.testing.assert_close(one.cpu().double(), other, rtol=0, atol=within * size)
