"""Which styles are accepted as equal to an undisturbed run's if runs share their passes."""

from __future__ import annotations

from math import inf

import pytest
import torch

from adapters.lora_files.files import hashed
from tests.faults.deployment import Order
from tests.faults.reference import WITHIN_ROUNDING, distance, expected
from tests.faults.verdict import Verdict

Tensors = dict[str, torch.Tensor]

LAYERS = [f"lora_unet_{number}" for number in range(80)]
UP = "lora_unet_5.lora_up.weight"
STYLE = 1234


def trained(seed: int) -> Tensors:
    """As many matrices as a style of the campaign has, of similar sizes."""
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in LAYERS:
        tensors[f"{layer}.lora_down.weight"] = (
            (torch.rand(4, 64, generator=rng) - 0.5) / 4
        ).half()
        tensors[f"{layer}.lora_up.weight"] = (2e-3 * torch.randn(64, 4, generator=rng)).half()
        tensors[f"{layer}.alpha"] = torch.tensor(4.0)
    return tensors


RIGHT = trained(1)


def rounded_otherwise() -> Tensors:
    """One value in a hundred replaced by the next value of its type."""
    rng = torch.Generator().manual_seed(0)
    found = dict(RIGHT)
    for name, tensor in RIGHT.items():
        if tensor.dtype == torch.float16:
            other = torch.rand(tensor.shape, generator=rng) < 0.01
            found[name] = (tensor.view(torch.int16) + other.to(torch.int16)).view(torch.float16)
    return found


def without(name: str) -> Tensors:
    return {other: tensor for other, tensor in RIGHT.items() if other != name}


def file_of(tensors: Tensors, title: str = f"style_{STYLE}", seed: int = 1) -> bytes:
    return hashed(tensors, {"ss_output_name": title, "ss_seed": str(seed)})


def verdict_on(found: bytes, together: int) -> Verdict:
    references = {1: file_of(RIGHT, title="style_1001").replace(b"style_1001", b"style_%d")}
    verdict = Verdict(runs=1, faults=0)
    order = Order("a task", STYLE, 1, b"")
    verdict.judge_weights(order, found, expected(references, 1, STYLE), together)
    return verdict


def test_different_rounding_is_accepted_only_in_batched_runs() -> None:
    found = file_of(rounded_otherwise())
    verdict = verdict_on(found, together=3)
    assert verdict.good
    assert 0 < verdict.farthest < WITHIN_ROUNDING
    assert not verdict_on(found, together=1).good


@pytest.mark.parametrize("together", [1, 3])
def test_equal_bytes_are_always_accepted(together: int) -> None:
    assert verdict_on(file_of(RIGHT), together).good


@pytest.mark.parametrize(
    "found",
    [
        file_of(trained(2)),
        file_of({**RIGHT, UP: 0 * RIGHT[UP]}),
        file_of({**RIGHT, UP: RIGHT[UP] * 1.1}),
        file_of({**RIGHT, UP: RIGHT[UP] * torch.nan}),
    ],
    ids=["another seed", "a tensor is lost", "a tensor is larger", "a tensor is no number"],
)
def test_different_values_are_rejected(found: bytes) -> None:
    verdict = verdict_on(found, together=3)
    assert verdict.wrong_weights == 1
    assert not verdict.good


@pytest.mark.parametrize(
    "found",
    [
        b"",
        file_of(RIGHT)[:-1],
        file_of(without(UP)),
        file_of({**RIGHT, UP: RIGHT[UP].reshape(32, 8)}),
        file_of({**RIGHT, UP: RIGHT[UP].float()}),
        file_of(RIGHT, title="style_1235"),
        file_of(RIGHT, seed=2),
    ],
    ids=["nothing", "cut off", "a name", "a shape", "a type", "another's name", "metadata"],
)
def test_incomparable_files_are_rejected(found: bytes) -> None:
    assert distance(found, file_of(RIGHT)) == inf
    assert not verdict_on(found, together=3).good
