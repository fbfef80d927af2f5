"""Fused blocks compute and train as diffusers' own do. On a CPU their operations are torch's."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from adapters.diffusion.base.model import BaseModel, load_base
from adapters.diffusion.execution import ExecutionOptions
from adapters.diffusion.fused import self_test
from adapters.diffusion.fused.blocks import FusedResnetBlock, with_fused_blocks
from adapters.diffusion.fused.operations import NormGrid, gated
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from domain.image import TrainingImage
from domain.parameters import LoraTargets
from tests.diffusion.fake_cuda_graph import FakeGraphRecorder
from tests.diffusion.runs import EVERY_OPTION, drive, plan_of, run

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]
FUSED = ExecutionOptions(channels_last=True, fused=True)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outcome(unet: UNet2DConditionModel) -> list[torch.Tensor]:
    """The prediction, and the gradient of the sum of its squares."""
    x = normal(2, 4, 8, 8).requires_grad_()
    states = normal(2, 77, unet.config.cross_attention_dim, seed=1)
    prediction = unet(x, torch.tensor([5, 400]), states).sample
    prediction.square().sum().backward()
    assert x.grad is not None
    return [prediction.detach(), x.grad]


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_unet_computes_the_same_on_the_same_weights(base: BaseModel, recomputed: bool) -> None:
    fused = with_fused_blocks(base.unet)
    assert isinstance(fused.mid_block.resnets[0], FusedResnetBlock)
    if recomputed:
        fused.enable_gradient_checkpointing()
    for one, other in zip(outcome(fused), outcome(base.unet), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    shared = {name: weight.data_ptr() for name, weight in base.unet.named_parameters()}
    assert {name: weight.data_ptr() for name, weight in fused.named_parameters()} == shared


@pytest.mark.parametrize(
    "setting",
    [
        {"act_fn": "gelu"},
        {"resnet_time_scale_shift": "scale_shift"},
        {"down_block_types": ("DownBlock2D", "KDownBlock2D")},
        {"mid_block_scale_factor": 2.0},
        {"mid_block_only_cross_attention": True},
    ],
)
def test_a_unet_with_other_blocks_or_settings_is_not_fused(
    base: BaseModel, setting: dict[str, Any]
) -> None:
    unet = copy.deepcopy(base.unet)
    unet.register_to_config(**setting)
    assert with_fused_blocks(unet) is unet


OPTIONS: list[dict[str, Any]] = [
    EVERY_OPTION,
    {"lora_targets": LoraTargets.FEED_FORWARD, "alpha": 2.0},
    {"lora_targets": LoraTargets.CONVOLUTIONS, "use_dora": True},
    {"train_text_encoder": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_training_with_fused_passes_follows_eager_training(
    base: BaseModel, trainer: DiffusionTrainer, images: Images, options: dict[str, Any]
) -> None:
    plan = plan_of(images, batch_size=2, **options)
    found = run(DiffusionTrainer(base, decode, "cpu", execution=FUSED), plan)
    for one, other in zip(found.history, run(trainer, plan).history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)


def test_the_text_encoder_is_trained_with_fused_passes_in_16_bits(
    small_base_folder: Path, trainer: DiffusionTrainer, images: Images
) -> None:
    plan = plan_of(images[:2], train_text_encoder=True)
    execution = replace(FUSED, dtype=torch.bfloat16)
    base = load_base(str(small_base_folder))
    found = run(DiffusionTrainer(base, decode, execution=execution), plan)
    for one, other in zip(found.history, run(trainer, plan).history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.05)


def test_styles_trained_together_with_fused_passes_follow_eager_training(
    base: BaseModel, trainer: DiffusionTrainer, images: Images
) -> None:
    """This also holds for captured steps: each replay copies the weights again."""
    recorder = FakeGraphRecorder()
    shared = DiffusionTrainer(
        *(base, decode, "cpu"),
        execution=replace(FUSED, make_recorder=lambda _: recorder),
        slots=2,
        max_wait=60.0,
    )
    plans = [plan_of(images[:2], epochs=3, alpha=2.0, seed=seed) for seed in (1, 2)]
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        sessions = [stack.enter_context(shared.open(plan, None)) for plan in plans]
        list(pool.map(drive, sessions))
        found = [session.history for session in sessions]
    assert recorder.replayed
    for history, plan in zip(found, plans, strict=True):
        for one, other in zip(history, run(trainer, plan).history, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=2e-4)
            assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=2e-3)


def test_kernels_are_used_where_they_match_torch(
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
    def reject(*_: object) -> None:
        raise RuntimeError(
            "Failed to find C compiler. Please specify via CC environment variable."
        )

    monkeypatch.setattr(self_test, "gated", reject)
    self_test.kernels_work.cache_clear()
    assert not self_test.kernels_work(torch.device("cpu"), torch.float16)
    self_test.kernels_work.cache_clear()
    assert "fused kernels are off: RuntimeError: Failed to find C compiler" in caplog.text


@pytest.mark.parametrize("images", [1, 8, 500])
@pytest.mark.parametrize(("pixels", "channels"), [(64 * 64, 320), (256 * 256, 960), (15, 12)])
def test_the_group_norm_of_a_large_image_is_split_among_programs(
    images: int, pixels: int, channels: int
) -> None:
    cut = NormGrid.of(images, pixels, channels, groups=4)
    chunk = cut.rows * cut.tiles
    assert cut.chunks * chunk >= pixels > (cut.chunks - 1) * chunk
    assert cut.blocks * cut.each >= 4 > (cut.blocks - 1) * cut.each
    programs = cut.chunks * cut.blocks * images
    assert programs <= 1024 or cut.chunks == 1
    assert programs >= 32 or pixels < 4096
