"""The fused kernels match torch, on a GPU or in Triton's interpreter, and compile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from adapters.diffusion.fused import operations
from adapters.diffusion.fused.operations import (
    Added,
    Gated,
    GroupNormed,
    LayerNormed,
    added,
    gated,
    group_norm,
    layer_norm,
)

pytest.importorskip("triton", reason="waits for triton, which there is for Linux alone")

INTERPRETED = "TRITON_INTERPRET" in os.environ
pytestmark = [
    pytest.mark.integration,
    pytest.mark.kernels,
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(),
        reason="waits for a torch that knows of the GPU here",
    ),
]

Operation = Callable[..., torch.Tensor]
Use = Callable[[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]
DEVICE = "cpu" if INTERPRETED else "cuda"


def assert_alike(kernel: Operation, plain: Operation, x: torch.Tensor, within: float) -> None:
    """The kernel in ``x``'s precision against torch in float64, with gradients."""
    exact = x.double().requires_grad_()
    wanted = plain(exact)
    gradient = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    wanted.backward(gradient.double())
    inputs = x.detach().to(DEVICE).requires_grad_()
    found = kernel(inputs)
    found.backward(gradient.to(DEVICE, x.dtype))
    assert inputs.grad is not None
    torch.testing.assert_close(found.cpu().double(), wanted, rtol=within, atol=within)
    torch.testing.assert_close(inputs.grad.cpu().double(), exact.grad, rtol=within, atol=within)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def first_of(found: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return found[0]


def both_of(found: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return found[0] * 2 + found[1] / 8


def other_of(found: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return found[1]


@pytest.mark.parametrize("activated", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("use", [first_of, both_of, other_of])
# Blocks of 12, 12 and 8 groups, chunks of two tiles, the last one short; groups of 80 channels;
# blocks of 3, 3 and 1; channels that are no multiple of 8; a group wider than a block.
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((1, 320, 9, 8), 32),
        ((1, 160, 8, 8), 2),
        ((2, 280, 6, 6), 7),
        ((2, 12, 3, 5), 4),
        ((1, 300, 4, 4), 2),
    ],
)
def test_group_norm_kernels_match_torch(
    shape: tuple[int, ...],
    groups: int,
    use: Use,
    shifted: bool,
    activated: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operations, "_MOST_CHUNKS", 2)
    norm = torch.nn.GroupNorm(groups, shape[1], eps=1e-5).requires_grad_(False)
    norm.weight.copy_(1 + normal(shape[1], seed=2))
    norm.bias.copy_(normal(shape[1], seed=3))
    shift = normal(shape[0], shape[1], seed=4) if shifted else None
    there = [None if t is None else t.to(DEVICE) for t in (norm.weight, norm.bias, shift)]
    exact = torch.nn.GroupNorm(groups, shape[1], eps=1e-5, dtype=torch.float64)
    exact.load_state_dict(norm.state_dict())
    # Far from 0, where a sum of squares less a squared sum would have lost what counts.
    x = (normal(*shape) + 30).to(memory_format=torch.channels_last)
    exactly = None if shift is None else shift.double()
    assert_alike(
        lambda x: use(GroupNormed.apply(x, *there, groups, 1e-5, activated)),
        lambda x: use(group_norm(x, exact, shift=exactly, activated=activated)),
        x,
        within=1e-4,
    )


@pytest.mark.parametrize("use", [first_of, both_of, other_of])
@pytest.mark.parametrize("width", [320, 1280, 24])
@pytest.mark.parametrize("added", [True, False])
def test_layer_norm_kernel_matches_torch(width: int, use: Use, added: bool) -> None:
    exact = torch.nn.LayerNorm(width, dtype=torch.float64).requires_grad_(False)
    exact.weight.copy_(1 + normal(width, seed=2))
    exact.bias.copy_(normal(width, seed=3))
    weight, bias = (t.float().to(DEVICE) for t in (exact.weight, exact.bias))
    plus = normal(2, 5, width, seed=4) if added else None
    there = None if plus is None else plus.to(DEVICE)
    assert_alike(
        lambda x: use(LayerNormed.apply(x, there, weight, bias, 1e-5)),
        lambda x: use(layer_norm(x, exact, None if plus is None else plus.double())),
        normal(2, 5, width) + 30,
        within=1e-4,
    )


def test_residual_before_a_layer_norm_has_the_gradient_of_the_sum() -> None:
    weight, bias = torch.ones(24, device=DEVICE), torch.zeros(24, device=DEVICE)
    x, plus = (normal(3, 24, seed=n).to(DEVICE).requires_grad_() for n in (1, 2))
    both_of(LayerNormed.apply(x, plus, weight, bias, 1e-5)).square().sum().backward()
    assert x.grad is not None
    assert plus.grad is not None
    assert torch.equal(x.grad, plus.grad)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bias_add_kernel_matches_torch(layout: torch.memory_format) -> None:
    x = normal(2, 320, 5, 3).to(memory_format=layout)
    other, bias = normal(2, 320, 5, 3, seed=2), normal(320, seed=3)
    assert_alike(
        lambda x: Added.apply(x, other.to(DEVICE), bias.to(DEVICE)),
        lambda x: added(x, other.double(), bias.double()),
        x,
        within=1e-6,
    )


def test_geglu_kernel_matches_torch() -> None:
    assert_alike(Gated.apply, gated, 3 * normal(2, 7, 2 * 300), within=1e-5)


def test_every_kernel_compiles_for_old_and_new_gpus() -> None:
    command = [sys.executable, "-m", "tests.diffusion.compile_kernels"]
    environment = {name: value for name, value in os.environ.items() if "TRITON" not in name}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels, switches, gpus = 9, 2, 2
    assert int(done.stdout) == kernels * switches * gpus
