"""The file that other programs load: keys, metadata, and the images drawn with it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

from adapters.common.tensor_file import body_of, decode
from adapters.diffusion import preview
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.session import DiffusionSession
from adapters.diffusion.style_weights import weights_for_file
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.lora_files.trained_style import RunFacts, encode_trained
from domain.image import TrainingImage
from domain.training_plan import TrainingPlan
from tests.diffusion.conftest import PREVIEW_STEPS
from tests.diffusion.runs import lora_on, plan_of, run, weights_of

pytestmark = pytest.mark.integration

PROMPTS = ("a red circle on a blue background", "inkwash, a green star")


@pytest.fixture
def plan(images: tuple[TrainingImage, ...]) -> TrainingPlan:
    plan = plan_of(
        images,
        epochs=1,
        rank=4,
        alpha=6.0,
        learning_rate=2e-2,
        trigger_word="inkwash",
        sample_prompts=PROMPTS,
        snr_gamma=5.0,
    )
    return replace(plan, created_at=datetime(2025, 1, 20, 10, tzinfo=UTC))


def test_every_key_is_in_kohya_format_with_three_per_layer(
    trainer: DiffusionTrainer, plan: TrainingPlan
) -> None:
    tensors, _ = decode(run(trainer, plan, steps=1).weights)
    form = re.compile(
        r"lora_unet_(down_blocks_\d|mid_block|up_blocks_\d)_attentions_\d_transformer_blocks_\d"
        r"_attn[12]_to_(q|k|v|out_0)\.(lora_down\.weight|lora_up\.weight|alpha)"
    )
    assert all(form.fullmatch(key) for key in tensors)
    layers = {key.partition(".")[0] for key in tensors}
    assert len(tensors) == 3 * len(layers)
    for layer in layers:
        down, up = tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.lora_up.weight"]
        assert down.shape[0] == up.shape[1] == 4
        assert down.dtype == up.dtype == torch.float16
        assert tensors[f"{layer}.alpha"].item() == 6.0


def test_the_metadata_describes_the_run(
    trainer: DiffusionTrainer, plan: TrainingPlan, tmp_path: Path
) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes(run(trainer, plan).weights)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    expected = {
        "ss_sd_model_name": "small_base",
        "ss_base_model_version": "sd_v1",
        "ss_epoch": "1",
        "ss_steps": "5",
        "ss_num_batches_per_epoch": "5",
        "ss_min_snr_gamma": "5.0",
        "modelspec.prediction_type": "epsilon",
        "modelspec.date": "2025-01-20T10:00:00+00:00",
        "modelspec.trigger_phrase": "inkwash",
        "modelspec.usage_hint": "Trigger word: inkwash",
        "modelspec.tags": "ink, wash",
        "modelspec.hash_sha256": f"0x{hashlib.sha256(body_of(path.read_bytes())).hexdigest()}",
    }
    assert {name: metadata.get(name) for name in expected} == expected
    assert json.loads(metadata["ss_tag_frequency"])["style_7"]["inkwash"] == 5
    buckets = json.loads(metadata["ss_bucket_info"])["buckets"]
    assert sorted((tuple(b["resolution"]), b["count"]) for b in buckets.values()) == [
        ((64, 64), 4),
        ((72, 56), 1),
    ]


def test_metadata_reads_no_clock_and_has_the_dropout(
    trainer: DiffusionTrainer, images: tuple[TrainingImage, ...]
) -> None:
    _, metadata = decode(run(trainer, plan_of(images[:1], lora_dropout=0.25), steps=1).weights)
    assert not [name for name in metadata if name.endswith(("_at", "date")) or "time" in name]
    assert json.loads(metadata["ss_network_args"])["lora_dropout"] == "0.25"
    assert "ss_network_dropout" not in metadata  # kohya's, behind lora_down


def test_every_figure_of_a_run_is_in_the_metadata(
    base: BaseModel, images: tuple[TrainingImage, ...]
) -> None:
    """Each other than the rest: of five images one is kept for validation, of three epochs two
    are done."""
    plan = plan_of(
        images,
        tags=(),
        epochs=3,
        resolution=128,
        batch_size=2,
        rank=2,
        alpha=8.0,
        seed=9,
        learning_rate=0.0625,
        train_text_encoder=True,
        text_encoder_lr=0.03125,
        lr_scheduler="linear",
        lr_warmup_steps=11,
        weight_decay=0.5,
        max_grad_norm=0.75,
        noise_offset=0.03,
        caption_dropout=0.375,
        use_rslora=True,
    )
    facts = RunFacts(
        base_name="some base",
        prediction_type="v_prediction",
        captions=["ink, a fox", " ink ,, a boat", "ink"],
        optimizer="torch.optim.adamw.AdamW",
        bucket_sizes={(128, 128): 3, (192, 64): 1},
        steps=15,
        steps_per_epoch=7,
    )
    with lora_on(base, rank=2, alpha=8.0) as lora:
        _, metadata = decode(encode_trained(weights_for_file(lora.new_style(0, 1)), plan, facts))
    for of_the_bytes in ("modelspec.hash_sha256", "sshs_model_hash"):
        del metadata[of_the_bytes]
    read = {
        "ss_network_args": {"lora_targets": "attention", "use_rslora": "True"},
        "ss_bucket_info": {
            "buckets": {
                "0": {"resolution": [128, 128], "count": 3},
                "1": {"resolution": [192, 64], "count": 1},
            }
        },
        "ss_dataset_dirs": {"style_7": {"n_repeats": 1, "img_count": 4}},
        "ss_tag_frequency": {"style_7": {"ink": 3, "a fox": 1, "a boat": 1}},
    }
    assert {name: json.loads(metadata.pop(name)) for name in read} == read
    assert metadata == {
        "ss_output_name": "style_7",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "8.0",
        "ss_base_model_version": "sd_v1_v",
        "ss_sd_model_name": "some base",
        "ss_v2": "False",
        "ss_unet_lr": "0.0625",
        "ss_text_encoder_lr": "0.03125",
        "ss_learning_rate": "0.0625",
        "ss_lr_scheduler": "linear",
        "ss_lr_warmup_steps": "11",
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.5)",
        "ss_max_grad_norm": "0.75",
        "ss_num_epochs": "3",
        "ss_epoch": "2",
        "ss_steps": "15",
        "ss_max_train_steps": "21",
        "ss_num_train_images": "4",
        "ss_num_validation_images": "1",
        "ss_num_reg_images": "0",
        "ss_num_batches_per_epoch": "7",
        "ss_batch_size_per_device": "2",
        "ss_total_batch_size": "2",
        "ss_resolution": "(128, 128)",
        "ss_enable_bucket": "True",
        "ss_min_snr_gamma": "None",
        "ss_noise_offset": "0.03",
        "ss_caption_dropout_rate": "0.375",
        "ss_seed": "9",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "style_7",
        "modelspec.description": "A style learnt from 4 images with some base.",
        "modelspec.resolution": "128x128",
        "modelspec.prediction_type": "v",
    }


@pytest.mark.parametrize(
    ("options", "rate"),
    [({}, "None"), ({"train_text_encoder": True}, "0.0625"), ({"text_encoder_lr": 0.05}, "None")],
)
def test_the_text_encoders_learning_rate_is_recorded_if_it_is_trained(
    base: BaseModel, images: tuple[TrainingImage, ...], options: dict[str, Any], rate: str
) -> None:
    facts = RunFacts(
        "some base", "epsilon", [], "AdamW", {(64, 64): 5}, steps=1, steps_per_epoch=1
    )
    with lora_on(base) as lora:
        plan = plan_of(images, learning_rate=0.0625, **options)
        data = encode_trained(weights_for_file(lora.new_style(0, 1)), plan, facts)
    assert decode(data)[1]["ss_text_encoder_lr"] == rate


def test_diffusers_draws_the_sessions_images_from_the_file(
    trainer: DiffusionTrainer,
    plan: TrainingPlan,
    small_base_folder: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "style.safetensors"
    with trainer.open(plan, None) as session:
        before = session.previews(with_lora=False)
        while not session.finished:
            session.advance()
        weights = weights_of(session)
        weights.copy_(weights.half().float())  # the file's precision
        path.write_bytes(session.weights())
        after = session.previews(with_lora=True)

    pipeline = StableDiffusionPipeline.from_pretrained(small_base_folder, safety_checker=None)
    pipeline.to(dtype=torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    assert draw(pipeline) == [preview.png for preview in before]
    pipeline.load_lora_weights(path)
    for found, drawn in zip(draw(pipeline), after, strict=True):
        apart = pixels(found).astype(int) - pixels(drawn.png)
        assert np.abs(apart).max() <= 1  # of 255: PEFT adds up in another order
    assert not np.array_equal(pixels(before[0].png), pixels(after[0].png))


def draw(pipeline: StableDiffusionPipeline) -> list[bytes]:
    pngs = []
    for seed, prompt in enumerate(PROMPTS):
        image = pipeline(
            prompt,
            width=64,
            height=64,
            num_inference_steps=PREVIEW_STEPS,
            guidance_scale=preview.GUIDANCE,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        png = BytesIO()
        image.save(png, "PNG")
        pngs.append(png.getvalue())
    return pngs


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)))


def test_the_matrices_in_the_file_are_the_trained_ones(
    trainer: DiffusionTrainer, plan: TrainingPlan
) -> None:
    with trainer.open(plan, None) as session:
        assert isinstance(session, DiffusionSession)
        session.advance()
        tensors = safetensors.torch.load(session.weights())
        trained = [
            matrix.detach().half()
            for adapter in session.lora.unet.values()
            for matrix in (adapter.down, adapter.up)
        ]
        layers = list(session.lora.unet)
    keys = [
        f"lora_unet_{layer.replace('.', '_')}.lora_{part}.weight"
        for layer in layers
        for part in ("down", "up")
    ]
    assert all(torch.equal(tensors[key], own) for key, own in zip(keys, trained, strict=True))
