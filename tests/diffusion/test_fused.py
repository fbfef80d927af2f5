"""Fused blocks compute and train as diffusers' own do. On a CPU their operations are torch's."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from adapters.diffusion.backend import Backend
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.fused import self_test
from adapters.diffusion.fused.blocks import FusedAttention, with_fused_blocks
from adapters.diffusion.fused.operations import gated
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from domain.image import TrainingImage
from domain.parameters import LoraTargets
from tests.diffusion.fake_cuda_graph import Tape
from tests.diffusion.runs import EVERY_OPTION, drive, plan_of, run

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]
FUSED = Backend(channels_last=True, fused=True)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outcome(unet: UNet2DConditionModel) -> list[torch.Tensor]:
    """A prediction, and the gradient of its square."""
    x = normal(2, 4, 8, 8).requires_grad_()
    states = normal(2, 77, unet.config.cross_attention_dim, seed=1)
    answer = unet(x, torch.tensor([5, 400]), states).sample
    answer.square().sum().backward()
    assert x.grad is not None
    return [answer.detach(), x.grad]


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_unet_computes_the_same_on_the_same_weights(base: BaseModel, recomputed: bool) -> None:
    fused = with_fused_blocks(base.unet)
    if recomputed:
        fused.enable_gradient_checkpointing()
    for one, other in zip(outcome(fused), outcome(base.unet), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    shared = {name: weight.data_ptr() for name, weight in base.unet.named_parameters()}
    assert {name: weight.data_ptr() for name, weight in fused.named_parameters()} == shared


def is_fused(module: torch.nn.Module) -> bool:
    if isinstance(module, Attention):
        return isinstance(module.processor, FusedAttention)
    return type(module).__name__.startswith("Fused")


SOMETHING = torch.nn.Identity()
DROPOUT, NO_SILU = torch.nn.Dropout(0.1), torch.nn.GELU()
NO_BIAS = torch.nn.Conv2d(8, 8, 3, bias=False)


@pytest.mark.parametrize(
    ("kind", "part", "value"),
    [
        (ResnetBlock2D, "time_emb_proj", None),
        (ResnetBlock2D, "time_embedding_norm", "scale_shift"),
        (ResnetBlock2D, "skip_time_act", True),
        (ResnetBlock2D, "upsample", SOMETHING),
        (ResnetBlock2D, "downsample", SOMETHING),
        (ResnetBlock2D, "output_scale_factor", 2.0),
        (ResnetBlock2D, "dropout", DROPOUT),
        (ResnetBlock2D, "conv1", NO_BIAS),
        (ResnetBlock2D, "conv2", NO_BIAS),
        (ResnetBlock2D, "nonlinearity", NO_SILU),
        (Transformer2DModel, "is_input_continuous", False),
        (Transformer2DModel, "use_linear_projection", True),
        (BasicTransformerBlock, "norm_type", "ada_norm"),
        (BasicTransformerBlock, "pos_embed", SOMETHING),
        (BasicTransformerBlock, "attn2", None),
        (BasicTransformerBlock, "only_cross_attention", True),
        (BasicTransformerBlock, "attn2.only_cross_attention", True),
        (BasicTransformerBlock, "_chunk_size", 1),
        (BasicTransformerBlock, "fuser", SOMETHING),
        (BasicTransformerBlock, "norm1.bias", None),
        (BasicTransformerBlock, "norm2.bias", None),
        (BasicTransformerBlock, "norm3.bias", None),
        (Attention, "spatial_norm", SOMETHING),
        (Attention, "group_norm", SOMETHING),
        (Attention, "norm_q", SOMETHING),
        (Attention, "norm_k", SOMETHING),
        (Attention, "norm_cross", True),
        (Attention, "residual_connection", True),
        (Attention, "rescale_output_factor", 2.0),
        (Attention, "to_out.1", DROPOUT),
    ],
)
def test_a_block_with_settings_that_are_not_known_stays_as_it_is(
    base: BaseModel, kind: type[torch.nn.Module], part: str, value: object
) -> None:
    unet = copy.deepcopy(base.unet)
    changed, *others = [name for name, m in unet.named_modules() if isinstance(m, kind)]
    home, _, name = f"{changed}.{part}".rpartition(".")
    setattr(unet.get_submodule(home), name, value)
    fused = with_fused_blocks(unet)
    assert not is_fused(fused.get_submodule(changed))
    assert all(is_fused(fused.get_submodule(other)) for other in others)


@pytest.mark.parametrize(
    ("part", "value"),
    [("conv_norm_out", SOMETHING), ("conv_norm_out", None), ("conv_act", NO_SILU)],
)
def test_a_last_norm_without_its_silu_stays_as_it_is(
    base: BaseModel, part: str, value: torch.nn.Module | None
) -> None:
    unet = copy.deepcopy(base.unet)
    setattr(unet, part, value)
    fused = with_fused_blocks(unet)
    for name in ("conv_norm_out", "conv_act"):
        assert type(getattr(fused, name)) is type(getattr(unet, name))


OPTIONS: list[dict[str, Any]] = [
    {},
    EVERY_OPTION,
    {"lora_targets": LoraTargets.FEED_FORWARD, "alpha": 2.0},
    {"lora_targets": LoraTargets.CONVOLUTIONS, "use_dora": True},
    {"train_text_encoder": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_training_with_fused_passes_follows_the_plain_way(
    base: BaseModel, trainer: DiffusionTrainer, images: Images, options: dict[str, Any]
) -> None:
    plan = plan_of(images, batch_size=2, **options)
    found = run(DiffusionTrainer(base, decode, "cpu", backend=FUSED), plan)
    for one, other in zip(found.history, run(trainer, plan).history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)


def test_styles_trained_together_with_fused_passes_follow_the_plain_way(
    base: BaseModel, trainer: DiffusionTrainer, images: Images
) -> None:
    """Recorded, too: what lies side by side in the copy is gathered anew in each replay."""
    tape = Tape()
    seated = DiffusionTrainer(
        *(base, decode, "cpu"),
        backend=replace(FUSED, cuda_graphs=True),
        make_recorder=lambda _: tape,
        slots=2,
        patience=60.0,
    )
    plans = [plan_of(images[:2], epochs=3, alpha=2.0, seed=seed) for seed in (1, 2)]
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        sessions = [stack.enter_context(seated.open(plan, None)) for plan in plans]
        list(pool.map(drive, sessions))
        found = [session.history for session in sessions]
    assert tape.replayed
    for history, plan in zip(found, plans, strict=True):
        for one, other in zip(history, run(trainer, plan).history, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=2e-4)
            assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=2e-3)


def test_recorded_steps_with_fused_passes_give_the_bytes_of_plain_ones(
    base: BaseModel, images: Images
) -> None:
    tape = Tape()
    plan = plan_of(images[:2], epochs=3, alpha=2.0)
    captured = replace(FUSED, cuda_graphs=True)
    fast = DiffusionTrainer(base, decode, backend=captured, make_recorder=lambda _: tape)
    assert run(fast, plan) == run(DiffusionTrainer(base, decode, backend=FUSED), plan)
    assert tape.replayed


def test_kernels_are_taken_where_they_give_torchs_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = torch.device("cpu")
    self_test.kernels_work.cache_clear()
    assert self_test.kernels_work(here, torch.bfloat16)

    monkeypatch.setattr(self_test, "gated", lambda x: gated(x) * (1 + torch.rand(())))
    self_test.kernels_work.cache_clear()
    assert not self_test.kernels_work(here, torch.bfloat16)
    assert "results differ from torch" in caplog.text


def test_without_a_compiler_there_are_no_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError(
            "Failed to find C compiler. Please specify via CC environment variable."
        )

    monkeypatch.setattr(self_test, "gated", refuse)
    self_test.kernels_work.cache_clear()
    assert not self_test.kernels_work(torch.device("cpu"), torch.float16)
    self_test.kernels_work.cache_clear()
    assert "fused kernels are off: RuntimeError: Failed to find C compiler" in caplog.text
