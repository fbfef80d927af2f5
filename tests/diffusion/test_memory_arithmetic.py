"""Memory of a full-size step, counted without a GPU: weights and saved activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from adapters.diffusion.lora_layers import PackedLora, lora_installed
from domain.parameters import TrainingParameters

GIB = 2**30


class Attention(torch.autograd.Function):
    """Saves the same tensors as fused attention; the fallback would save attention maps."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        raise AssertionError("the test counts the saved tensors and runs no backward pass")


@pytest.mark.parametrize(("batch", "most"), [(1, 2.6), (4, 5.2)])
def test_weights_and_activations_of_a_full_size_step_fit_small_gpus(
    monkeypatch: pytest.MonkeyPatch, batch: int, most: float
) -> None:
    """In bfloat16, at 512 px and rank 8: batch 1 fits a 4 GB GPU, batch 4 an 8 GB GPU."""
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, key, value, *_, **__: Attention.apply(query, key, value),
    )
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        inputs = (
            torch.empty(batch, 4, 64, 64, dtype=torch.bfloat16),
            torch.empty(batch, dtype=torch.long),
            torch.empty(batch, 77, 768, dtype=torch.bfloat16),
        )
    torch.nn.Module.to(unet, dtype=torch.bfloat16)
    unet.eval().requires_grad_(False)
    weights = sum(weight.nbytes for weight in unet.parameters())
    frozen = {weight.untyped_storage()._cdata for weight in unet.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in frozen:
            kept[storage._cdata] = storage
        return tensor

    parameters = TrainingParameters(epochs=1, resolution=512, rank=8)
    meta = torch.device("meta")
    lora = PackedLora(unet, None, parameters, slots=1, device=meta, dtype=torch.bfloat16)
    with (
        lora_installed(unet, None, lora),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        lora.training(lora.slot(0)),
    ):
        trained = lora.weights.numel()
        prediction = unet(*inputs).sample
        assert prediction.requires_grad
    assert 1.5e6 < trained < 1.7e6
    # Weights, gradient, two moments and the last good copy of three of these.
    state = 7 * 4 * trained
    total = weights + state + sum(storage.nbytes() for storage in kept.values())
    assert 2.0 < total / GIB < most
