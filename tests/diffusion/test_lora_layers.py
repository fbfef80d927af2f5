from __future__ import annotations

import copy

import pytest
import torch
from adapters.diffusion.lora.adapters import TARGETS, Adapters, attached, dropout_draws

from adapters.diffusion.base.model import BaseModel
from domain.parameters import LoraTargets, TrainingParameters
from tests.diffusion.runs import predict

pytestmark = pytest.mark.integration


def modules(base: BaseModel) -> dict[str, type]:
    return {name: type(module) for name, module in base.unet.named_modules()}


def test_every_attention_projection_carries_an_adapter_of_the_rank(base: BaseModel) -> None:
    wanted = {name for name in modules(base) if name.endswith(tuple(f".{t}" for t in TARGETS))}
    with attached(base.unet, rank=3, alpha=6.0, seed=1) as adapters:
        assert adapters.by_layer.keys() == wanted
        assert {adapter.down.shape[0] for adapter in adapters.by_layer.values()} == {3}
        assert {adapter.up.shape[1] for adapter in adapters.by_layer.values()} == {3}


def test_fresh_adapters_change_nothing_and_trained_ones_do(base: BaseModel) -> None:
    plain = predict(base.unet)
    with attached(base.unet, rank=4, alpha=4.0, seed=1) as adapters:
        assert torch.equal(predict(base.unet), plain)
        adapters.flat.data += 0.1
        assert not torch.allclose(predict(base.unet), plain)
        with adapters.switched_off():
            assert torch.equal(predict(base.unet), plain)


def test_taking_the_adapters_off_leaves_the_denoiser_bit_for_bit(base: BaseModel) -> None:
    before = copy.deepcopy(base.unet.state_dict())
    structure = modules(base)
    with attached(base.unet, rank=4, alpha=4.0, seed=1) as adapters:
        adapters.flat.data += 1
    after = base.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert modules(base) == structure
    assert not any(weight.requires_grad for weight in base.unet.parameters())


def test_the_adapters_come_off_when_the_run_fails(base: BaseModel) -> None:
    structure = modules(base)
    with pytest.raises(RuntimeError, match="boom"), attached(base.unet, rank=4, alpha=4, seed=1):
        raise RuntimeError("boom")
    assert modules(base) == structure


def test_initial_weights_depend_on_the_seed_and_on_nothing_global(base: BaseModel) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    with attached(base.unet, rank=4, alpha=4.0, seed=1) as adapters:
        first = adapters.flat.detach().clone()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    with attached(base.unet, rank=4, alpha=4.0, seed=1) as adapters:
        assert torch.equal(adapters.flat, first)
    with attached(base.unet, rank=4, alpha=4.0, seed=2) as adapters:
        assert not torch.equal(adapters.flat, first)


def carriers(adapters: Adapters) -> set[str]:
    """The kinds of layer that carry an adapter, by the last parts of their names."""
    return {
        name.partition(".transformer_blocks.0.")[2] or name.rpartition(".")[2]
        for name in adapters.by_layer
    }


ATTENTION = {f"attn{i}.{layer}" for i in (1, 2) for layer in TARGETS}
FEED_FORWARD = {"ff.net.0.proj", "ff.net.2"}


def test_the_targets_widen_from_attention_to_feed_forward_to_convolutions(
    base: BaseModel,
) -> None:
    found = {}
    for targets in LoraTargets:
        with attached(base.unet, rank=2, alpha=2.0, seed=1, targets=targets) as adapters:
            found[targets] = carriers(adapters)
    assert found[LoraTargets.ATTENTION] == ATTENTION
    assert found[LoraTargets.FEED_FORWARD] == ATTENTION | FEED_FORWARD
    assert found[LoraTargets.CONVOLUTIONS] - ATTENTION - FEED_FORWARD == {
        *("proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv")
    }


def test_rslora_divides_by_the_ranks_square_root(base: BaseModel) -> None:
    def trained(**options: object) -> torch.Tensor:
        with attached(base.unet, rank=4, seed=1, **options) as adapters:
            adapters.flat.data += 0.05
            return predict(base.unet)

    # alpha / sqrt(4) = 1 is what alpha / 4 is with twice the alpha.
    torch.testing.assert_close(trained(alpha=2.0, rslora=True), trained(alpha=4.0))
    with attached(base.unet, rank=4, alpha=2.0, seed=1, rslora=True) as adapters:
        assert adapters.alpha / adapters.rank == 1.0


@pytest.mark.parametrize("targets", [LoraTargets.ATTENTION, LoraTargets.CONVOLUTIONS])
def test_dora_starts_as_the_base_and_trains_magnitudes_in_the_flat_weights(
    base: BaseModel, targets: LoraTargets
) -> None:
    with attached(base.unet, rank=4, alpha=4.0, seed=1, targets=targets, dora=True) as adapters:
        with adapters.switched_off():
            plain = predict(base.unet)
        started = predict(base.unet, gradient=True)
        torch.testing.assert_close(started, plain, rtol=1e-4, atol=1e-5)
        for adapter in adapters.by_layer.values():
            weight = adapter.layer.base_layer.weight
            lengths = weight.flatten(start_dim=1).norm(dim=1)
            torch.testing.assert_close(adapter.magnitude.detach().flatten(), lengths)
        started.square().mean().backward()
        magnitudes = [adapter.magnitude for adapter in adapters.by_layer.values()]
        assert all(m.grad.abs().max() > 0 for m in magnitudes)
        sizes = sum(w.numel() for a in adapters.by_layer.values() for w in a.weights)
        assert adapters.flat.numel() == sizes


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
def test_dora_starts_as_the_base_in_16_bits_too(base: BaseModel, compute: torch.dtype) -> None:
    """Over all layers: PEFT's own magnitudes are rounded as the layer's weights are."""
    unet = copy.deepcopy(base.unet)
    torch.nn.Module.to(unet, dtype=compute)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 4, 16, 16, generator=generator).to(compute)
    states = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator).to(compute)

    @torch.no_grad()
    def predicted() -> torch.Tensor:
        answer: torch.Tensor = unet(latents, 300, encoder_hidden_states=states).sample
        return answer

    plain = predicted()
    everywhere = LoraTargets.CONVOLUTIONS
    with attached(unet, rank=4, alpha=8.0, seed=1, targets=everywhere, dora=True) as adapters:
        for adapter in adapters.by_layer.values():
            assert adapter.magnitude is not None
            assert adapter.magnitude.dtype == torch.float32
            lengths = adapter.layer.base_layer.weight.float().flatten(start_dim=1).norm(dim=1)
            found = adapter.magnitude.detach().flatten()
            torch.testing.assert_close(found, lengths, rtol=1e-6, atol=0)
        assert torch.equal(predicted(), plain)


def test_dora_leaves_the_denoiser_bit_for_bit(base: BaseModel) -> None:
    before = copy.deepcopy(base.unet.state_dict())
    structure = modules(base)
    with attached(
        base.unet, rank=4, alpha=4, seed=1, targets=LoraTargets.CONVOLUTIONS, dora=True
    ) as adapters:
        adapters.flat.data += 1
    after = base.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert modules(base) == structure


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_works_while_training_and_nowhere_else(base: BaseModel, dora: bool) -> None:
    with attached(base.unet, rank=4, alpha=4.0, seed=1, dropout=0.5, dora=dora) as adapters:
        adapters.flat.data += 0.05
        assert torch.equal(predict(base.unet), predict(base.unet))
        one, other = (predict(base.unet, gradient=True) for _ in range(2))
        assert not torch.equal(one, other)


def test_what_dropout_leaves_out_depends_on_the_seed_and_the_step_alone() -> None:
    def drawn(seed: int, step: int) -> list[float]:
        parameters = TrainingParameters(epochs=1, resolution=64, seed=seed, lora_dropout=0.5)
        with dropout_draws(parameters, step, torch.device("cpu")):
            return torch.rand(4).tolist()

    before = torch.random.get_rng_state()
    first = drawn(1, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    assert drawn(1, 2) == first
    assert drawn(1, 3) != first != drawn(2, 2)


@pytest.mark.parametrize("dora", [False, True])
def test_the_folded_product_has_pefts_value_and_gradient(base: BaseModel, dora: bool) -> None:
    """``_fold`` is a faster way to the same numbers."""
    with attached(base.unet, rank=4, alpha=8.0, seed=1, dora=dora) as adapters:
        adapters.flat.data += 0.05
        folded = predict(base.unet, gradient=True)
        folded.square().mean().backward()
        gradient = adapters.flat.grad.clone()
        adapters.flat.grad.zero_()
        for adapter in adapters.by_layer.values():
            del adapter.layer.forward
        plain = predict(base.unet, gradient=True)
        plain.square().mean().backward()
        torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5)
        scale = adapters.flat.grad.abs().max().item()
        torch.testing.assert_close(gradient, adapters.flat.grad, rtol=0, atol=1e-4 * scale)


def test_gradients_arrive_in_the_flat_gradient(base: BaseModel) -> None:
    with attached(base.unet, rank=4, alpha=4.0, seed=1) as adapters:
        predict(base.unet, gradient=True).square().mean().backward()
        ups = [adapter.up.grad for adapter in adapters.by_layer.values()]
        assert all(gradient.abs().max() > 0 for gradient in ups)
        assert adapters.flat.grad.count_nonzero() == sum(int(g.count_nonzero()) for g in ups)
