"""LoRA layers match PEFT's, separately for each style, and leave the base unchanged."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.fused.blocks import with_fused_blocks
from adapters.diffusion.lora_layers import PackedLora, StyleLora, dropout_rng
from adapters.diffusion.lora_targets import ATTENTION
from domain.parameters import LoraTargets, TrainingParameters
from tests.diffusion.runs import lora_on, predict

pytestmark = pytest.mark.integration

EVERYWHERE = LoraTargets.CONVOLUTIONS
FEED_FORWARD = {"ff.net.0.proj", "ff.net.2"}
CONVOLUTIONS = {"proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv"}


def trained(lora: PackedLora, slot: int = 0, seed: int = 1) -> StyleLora:
    """A partly trained LoRA."""
    style = lora.new_style(slot, seed)
    noise = torch.randn(style.weights.shape, generator=torch.Generator().manual_seed(seed))
    style.weights.data += 0.05 * noise
    return style


def shown(base: BaseModel, lora: PackedLora, slot: int = 0) -> torch.Tensor:
    with lora.showing(lora.slot(slot)):
        return predict(base.unet)


def in_training(base: BaseModel, lora: PackedLora, slot: int = 0) -> torch.Tensor:
    """Run a forward and a backward pass; the packed LoRA holds the gradient."""
    with lora.training(lora.slot(slot)):
        found = predict(base.unet, gradient=True)
        found.square().mean().backward()
    return found.detach()


def modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return dict(model.named_modules())


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 8.0},
        {"use_rslora": True},
        {"lora_targets": EVERYWHERE},
        {"use_dora": True},
        {"lora_targets": EVERYWHERE, "use_dora": True},
    ],
)
def test_values_and_gradients_match_peft(
    base: BaseModel, options: dict[str, Any], merged: bool
) -> None:
    with lora_on(base, merged=merged, **options) as lora:
        style, scale = trained(lora), lora_scale(options)
        found = [in_training(base, lora), shown(base, lora)]
        names = list(style.unet)
    unet = copy.deepcopy(base.unet)
    config = LoraConfig(
        r=4,
        lora_alpha=scale * 4,
        use_dora=options.get("use_dora", False),
        target_modules=names,
    )
    inject_adapter_in_model(config, unet, adapter_name="book")
    layers = {name: layer for name, layer in unet.named_modules() if isinstance(layer, LoraLayer)}
    assert layers.keys() == style.unet.keys()
    pairs = []
    for name, own in style.unet.items():
        layer = layers[name]
        pairs.append((layer.lora_A["book"].weight, own.down))
        pairs.append((layer.lora_B["book"].weight, own.up))
        if own.magnitude is not None:
            pairs.append((layer.lora_magnitude_vector["book"].weight, own.magnitude))
    for theirs, ours in pairs:
        theirs.data.copy_(ours.view(theirs.shape))
    wanted = predict(unet, gradient=True)
    wanted.square().mean().backward()
    for one in found:
        torch.testing.assert_close(one, wanted.detach(), rtol=1e-3, atol=1e-4)
    start, packed_gradient = style.weights.data_ptr(), lora.gradient[0]
    largest = max(float(theirs.grad.abs().max()) for theirs, _ in pairs)
    for theirs, ours in pairs:
        at = (ours.data_ptr() - start) // 4
        mine = packed_gradient[at : at + ours.numel()].view(theirs.shape)
        torch.testing.assert_close(mine, theirs.grad, rtol=0, atol=1e-3 * largest)


def lora_scale(options: dict[str, Any]) -> float:
    return TrainingParameters(epochs=1, resolution=64, rank=4, **options).lora_scale


def test_each_style_of_a_batch_sees_its_own_lora_and_gets_its_own_gradient(
    base: BaseModel,
) -> None:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    states = torch.randn(2, 77, base.unet.config.cross_attention_dim, generator=generator)

    def loss_of(some: slice) -> torch.Tensor:
        prediction = base.unet(latents[some], 300, encoder_hidden_states=states[some]).sample
        return prediction.square().mean(dim=(1, 2, 3))

    with lora_on(base, slots=3, alpha=2.0) as lora:
        for slot in range(3):
            trained(lora, slot, seed=slot)
        losses, gradient = [], torch.zeros_like(lora.gradient)
        for image, slot in ((0, 2), (1, 0)):
            with lora.training(lora.slot(slot)):
                losses.append(loss_of(slice(image, image + 1)))
                losses[-1].sum().backward()
            gradient[slot] = lora.gradient[slot]
        lora.gradient.zero_()
        with lora.training(torch.tensor([2, 0])):
            together = loss_of(slice(2))
            together.sum().backward()
        torch.testing.assert_close(together, torch.cat(losses), rtol=1e-4, atol=1e-6)
        atol = 1e-4 * float(gradient.abs().max())
        torch.testing.assert_close(lora.gradient, gradient, rtol=0, atol=atol)
        assert not lora.gradient[1].any()


@pytest.mark.parametrize("options", [{}, {"use_dora": True, "lora_targets": EVERYWHERE}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_initial_lora_equals_the_base_bit_for_bit_and_a_trained_one_does_not(
    base: BaseModel, options: dict[str, Any], dtype: torch.dtype
) -> None:
    unet = copy.deepcopy(base.unet)
    torch.nn.Module.to(unet, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 4, 16, 16, generator=generator).to(dtype)
    states = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator).to(dtype)

    @torch.no_grad()
    def predicted() -> torch.Tensor:
        found: torch.Tensor = unet(latents, 300, encoder_hidden_states=states).sample
        return found

    plain = predicted()
    with lora_on(base, unet, **options) as lora:
        assert torch.equal(predicted(), plain)
        style = lora.new_style(0, 1)
        with lora.showing(lora.slot(0)):
            assert torch.equal(predicted(), plain)
        style.weights.data += 0.1
        with lora.showing(lora.slot(0)):
            assert not torch.allclose(predicted(), plain)
        assert torch.equal(predicted(), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_small_change_of_doras_magnitudes_takes_effect_in_16_bits(
    base: BaseModel, dtype: torch.dtype
) -> None:
    unet = copy.deepcopy(base.unet)
    torch.nn.Module.to(unet, dtype=dtype)
    with lora_on(base, unet, use_dora=True) as lora:
        name, own = next(iter(lora.new_style(0, 1).unet.items()))
        assert own.magnitude is not None
        own.magnitude.mul_(1.003)
        layer = unet.get_submodule(name)
        x = torch.randn(512, layer.in_features, generator=torch.Generator().manual_seed(3))
        plain = layer(x.to(dtype)).float()
        with lora.showing(lora.slot(0)):
            longer = layer(x.to(dtype)).float()
    gain = (longer * plain).sum() / plain.square().sum()
    assert float(gain) == pytest.approx(1.003, abs=3e-4)


@pytest.mark.parametrize("options", [{}, {"use_dora": True, "lora_targets": EVERYWHERE}])
def test_the_models_are_restored_even_if_the_run_fails(
    base: BaseModel, options: dict[str, Any]
) -> None:
    models = (base.unet, base.text_encoder)
    before = [(modules(model), copy.deepcopy(model.state_dict())) for model in models]

    def fail() -> None:
        with lora_on(base, train_text_encoder=True, **options) as lora:
            trained(lora)
            in_training(base, lora)
            assert modules(base.unet) != before[0][0]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    for model, (structure, weights) in zip(models, before, strict=True):
        assert modules(model) == structure
        after = model.state_dict()
        assert after.keys() == weights.keys()
        assert all(torch.equal(after[name], weights[name]) for name in weights)
        assert not any(
            weight.requires_grad or weight.grad is not None for weight in model.parameters()
        )


def test_initial_weights_depend_on_the_seed_only(base: BaseModel) -> None:
    def drawn(seed: int, slot: int = 0) -> torch.Tensor:
        with lora_on(base, slots=2) as lora:
            return lora.new_style(slot, seed).weights.detach().clone()

    state = torch.random.get_rng_state()
    first = drawn(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(drawn(1, slot=1), first)
    assert not torch.equal(drawn(2), first)


def test_the_targets_widen_from_attention_to_feed_forward_to_convolutions(
    base: BaseModel,
) -> None:
    attention = {f"attn{i}.{layer}" for i in (1, 2) for layer in ATTENTION}
    text_attention = {"q_proj", "k_proj", "v_proj", "out_proj"}
    for targets, in_unet, in_text in (
        (LoraTargets.ATTENTION, attention, text_attention),
        (LoraTargets.FEED_FORWARD, attention | FEED_FORWARD, text_attention | {"fc1", "fc2"}),
        (EVERYWHERE, attention | FEED_FORWARD | CONVOLUTIONS, text_attention | {"fc1", "fc2"}),
    ):
        with lora_on(base, rank=3, lora_targets=targets, train_text_encoder=True) as lora:
            style = lora.new_style(0, 1)
        inner = [name.partition(".transformer_blocks.0.")[2] for name in style.unet]
        outer = [name.rpartition(".")[2] for name in style.unet]
        found = {one or other for one, other in zip(inner, outer, strict=True)}
        assert found == in_unet
        assert {name.split(".")[-1] for name in style.text_encoder} == in_text
        every = [*style.unet.values(), *style.text_encoder.values()]
        assert style.weights.numel() == sum(own.down.numel() + own.up.numel() for own in every)
        of_text = sum(o.down.numel() + o.up.numel() for o in style.text_encoder.values())
        assert style.text_weights.numel() == of_text


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"lora_targets": EVERYWHERE}])
def test_dropout_is_active_in_training_only(
    base: BaseModel, options: dict[str, Any], fused: bool
) -> None:
    if fused:
        base = replace(base, unet=with_fused_blocks(base.unet))
    with lora_on(base, lora_dropout=0.5, **options) as lora:
        trained(lora)
        assert torch.equal(shown(base, lora), shown(base, lora))
        assert not torch.equal(in_training(base, lora), in_training(base, lora))


def test_dropout_masks_depend_on_seed_and_step_only() -> None:
    def drawn(seed: int, step: int) -> list[float]:
        with dropout_rng(seed, step, torch.device("cpu")):
            numbers: list[float] = torch.rand(4).tolist()
        return numbers

    before = torch.random.get_rng_state()
    first = drawn(1, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    assert drawn(1, 2) == first
    assert drawn(1, 3) != first != drawn(2, 2)
