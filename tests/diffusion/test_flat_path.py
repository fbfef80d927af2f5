"""Which adapters the flat path computes, and when."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.lora.adapters import attached
from adapters.diffusion.lora.flat_path import flat_path_of, suits
from domain.parameters import LoraTargets
from tests.diffusion.runs import predict

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("options", "suitable"),
    [
        ({}, True),
        ({"targets": LoraTargets.FEED_FORWARD, "rslora": True}, True),
        ({"targets": LoraTargets.CONVOLUTIONS}, False),
        ({"dora": True}, False),
        ({"dropout": 0.1}, False),
    ],
)
def test_it_knows_plain_products_on_linear_layers_alone(
    base: BaseModel, options: dict[str, Any], suitable: bool
) -> None:
    with attached(base.unet, rank=2, alpha=2.0, seed=1, **options) as adapters:
        assert suits(adapters, options.get("dropout", 0.0)) is suitable


def test_a_text_encoders_adapters_are_none_of_its(base: BaseModel) -> None:
    with attached(
        base.unet, rank=2, alpha=2.0, seed=1, text_encoder=base.text_encoder
    ) as adapters:
        assert not suits(adapters, 0.0)


def test_adapters_that_are_switched_off_stay_off_where_gradients_are_recorded(
    base: BaseModel,
) -> None:
    plain = predict(base.unet, gradient=True)
    with attached(base.unet, rank=2, alpha=2.0, seed=1) as adapters:
        adapters.flat.data += 0.1
        with flat_path_of(adapters, torch.float32) as path:
            path.refresh()
            assert not torch.allclose(predict(base.unet, gradient=True), plain)
            with adapters.switched_off():
                assert torch.equal(predict(base.unet, gradient=True), plain)
