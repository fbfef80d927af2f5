"""Convolutions as matrix products: the library's numbers, forward and backward, and training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from adapters.diffusion.base import convolutions
from adapters.diffusion.base.convolutions import (
    TILES_OF_2,
    TILES_OF_4,
    Filtering,
    as_products,
    by_columns,
    by_tiles,
    pointwise,
    transformed,
)
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.strategy import Strategy
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.pillow import decode
from domain.parameters import LoraTargets
from domain.picture import Picture
from tests.diffusion.runs import EVERY_OPTION, drive, plan_of, run

pytestmark = pytest.mark.integration

Pictures = tuple[Picture, ...]
PRODUCTS = Strategy(flat_path=True, channels_last=True, products=True)
FILTERINGS = [TILES_OF_2, TILES_OF_4]


def assert_convolves(
    found: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, ...],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: int = 1,
    padding: int = 1,
) -> None:
    """Against float64, forward and backward, from feature maps in either layout."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    exact = x.double().requires_grad_()
    wanted = torch.nn.functional.conv2d(
        exact, weight.double(), None if bias is None else bias.double(), stride, padding
    )
    gradient = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    wanted.backward(gradient.double())
    for layout in (torch.contiguous_format, torch.channels_last):
        asked = x.clone(memory_format=layout).requires_grad_()
        answer = found(asked)
        answer.backward(gradient)
        torch.testing.assert_close(answer.double(), wanted, rtol=0, atol=1e-4)
        torch.testing.assert_close(asked.grad.double(), exact.grad, rtol=0, atol=1e-4)


def weights(k: int, c: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(k, c, side, side, generator=generator) / (c * side**2) ** 0.5
    return weight, torch.randn(k, generator=generator)


@pytest.mark.parametrize("filtering", FILTERINGS)
@pytest.mark.parametrize("shape", [(1, 40, 8, 8), (2, 40, 7, 10), (3, 40, 1, 5)])
def test_tiles_give_the_convolution_and_its_gradient(
    filtering: Filtering, shape: tuple[int, ...]
) -> None:
    weight, bias = weights(48, 40, 3)
    ready = transformed(weight, filtering)
    assert_convolves(lambda x: by_tiles(x, ready, bias, filtering), shape, weight, bias)
    assert_convolves(lambda x: by_tiles(x, ready, None, filtering), shape, weight, None)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 40, 8, 8), (2, 40, 7, 10), (3, 40, 1, 5)])
def test_columns_give_the_convolution_and_its_gradient(
    stride: int, shape: tuple[int, ...]
) -> None:
    weight, bias = weights(48, 40, 3)
    rows = weight.permute(0, 2, 3, 1).flatten(1)
    assert_convolves(
        lambda x: by_columns(x, rows, bias, stride), shape, weight, bias, stride=stride
    )


def test_a_single_pixels_weights_give_the_convolution_and_its_gradient() -> None:
    weight, bias = weights(48, 40, 1)
    assert_convolves(lambda x: pointwise(x, weight, bias), (2, 40, 7, 10), weight, bias, padding=0)


@pytest.fixture
def filtered_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small base's feature maps have few pixels."""
    monkeypatch.setattr(convolutions, "FILTERED_FROM", {TILES_OF_4: 64, TILES_OF_2: 16})


def untouched(unet: UNet2DConditionModel) -> bool:
    return not any("forward" in module.__dict__ for module in unet.modules())


def test_the_denoiser_gives_the_same_answer_and_gets_its_convolutions_back(
    base: BaseModel, filtered_everywhere: None
) -> None:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 9, 12, generator=generator)
    states = torch.randn(2, 77, base.unet.config.cross_attention_dim, generator=generator)

    def answer() -> torch.Tensor:
        with torch.no_grad():
            return base.unet(noisy, 500, encoder_hidden_states=states, return_dict=False)[0]

    plain = answer()
    with as_products(base.unet):
        assert not untouched(base.unet)
        found = answer()
    assert untouched(base.unet)
    assert not torch.equal(found, plain)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 2, "alpha": 2.0},
        {"lora_targets": LoraTargets.CONVOLUTIONS},
        {"lora_targets": LoraTargets.CONVOLUTIONS, "use_dora": True},
        {"train_text_encoder": True},
    ],
)
def test_products_train_as_the_plain_way_does_and_resume_byte_for_byte(
    trainer: DiffusionTrainer,
    base: BaseModel,
    pictures: Pictures,
    filtered_everywhere: None,
    options: dict[str, object],
) -> None:
    # Weights that move little, or rounding would come to show in the losses.
    plan = plan_of(pictures[2:], **EVERY_OPTION, epochs=3, **{"learning_rate": 1e-3, **options})
    plain = run(trainer, plan)
    own = replace(base, unet=copy.deepcopy(base.unet))
    before = copy.deepcopy(own.unet.state_dict())
    fast = DiffusionTrainer(own, decode, strategy=PRODUCTS)
    outcome = run(fast, plan)
    assert outcome.weights != plain.weights
    for one, other in zip(plain.history, outcome.history, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-3)
    assert run(fast, plan, resume=run(fast, plan, steps=2).checkpoint) == outcome
    assert untouched(own.unet)
    after = own.unet.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_several_styles_at_once_train_on_products_too(
    base: BaseModel, pictures: Pictures, filtered_everywhere: None
) -> None:
    own = replace(base, unet=copy.deepcopy(base.unet))
    fast = DiffusionTrainer(own, decode, strategy=PRODUCTS, seats=2, patience=60.0)
    plans = [plan_of(pictures[:2], epochs=2, seed=seed, learning_rate=1e-3) for seed in (1, 2)]
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        sessions = [stack.enter_context(fast.open(plan, None)) for plan in plans]
        assert not untouched(own.unet)
        list(pool.map(drive, sessions))
        histories = [session.history for session in sessions]
    assert untouched(own.unet)
    alone = DiffusionTrainer(own, decode, strategy=PRODUCTS)
    for history, plan in zip(histories, plans, strict=True):
        for one, other in zip(run(alone, plan).history, history, strict=True):
            assert other.loss == pytest.approx(one.loss, rel=1e-4)
