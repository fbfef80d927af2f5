"""A run that starts from an existing LoRA continues it, or fails with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from adapters.lora_files.files import decode_lora, encode_lora, write_lora
from adapters.lora_files.initial_lora import initial_from_bytes, initial_from_path
from adapters.lora_files.lora_formats import InvalidLoraFile, LoraFormat
from domain.image import TrainingImage
from domain.training_plan import InitialLora, TrainingPlan
from tests.diffusion.runs import plan_of, run

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]


@pytest.fixture(scope="module")
def first(base: BaseModel, images: Images) -> bytes:
    """A LoRA of rank 4 and alpha 6."""
    return run(DiffusionTrainer(base, decode), plan_of(images[:2], alpha=6.0)).weights


def plan_from(images: Images, initial: InitialLora, **parameters: Any) -> TrainingPlan:
    named = {"network_weights": "s3://models/first.safetensors", **parameters}
    return replace(plan_of(images[:2], **named), initial=initial)


def deltas(data: bytes) -> dict[str, torch.Tensor]:
    weights, _ = decode_lora(data)
    return {
        path: layer.alpha / layer.rank * (layer.up.float() @ layer.down.float())
        for (_, path), layer in weights.items()
    }


@pytest.mark.parametrize("alpha", [6.0, 1.0])
def test_before_the_first_step_the_run_equals_the_lora_with_any_alpha(
    trainer: DiffusionTrainer, images: Images, first: bytes, alpha: float
) -> None:
    plan = plan_from(images, initial_from_bytes(first), alpha=alpha)
    found = deltas(run(trainer, plan, steps=0).weights)
    wanted = deltas(first)
    assert max(float(delta.abs().max()) for delta in wanted.values()) > 1e-3
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-5)


def test_a_warm_start_trains_resumes_exactly_and_records_its_source(
    trainer: DiffusionTrainer, images: Images, first: bytes
) -> None:
    plan = plan_from(images, initial_from_bytes(first))
    uninterrupted = run(trainer, plan)
    part = run(trainer, plan, steps=2)
    assert run(trainer, plan, resume=part.checkpoint).weights == uninterrupted.weights
    assert any(
        delta.ne(deltas(first)[path]).any()
        for path, delta in deltas(uninterrupted.weights).items()
    )
    _, metadata = decode_lora(uninterrupted.weights)
    assert metadata["ss_network_weights"] == "first.safetensors"
    assert len(metadata["ss_network_weights_hash"]) == 64


@pytest.mark.parametrize("form", LoraFormat)
def test_every_format_can_be_a_warm_start(tmp_path: Path, first: bytes, form: LoraFormat) -> None:
    weights, metadata = decode_lora(first)
    write_lora(weights, metadata, form, tmp_path, "style")
    found = initial_from_path(tmp_path)
    assert (found.rank, found.alpha) == (4, 6.0)
    torch.testing.assert_close(deltas(found.data), deltas(first))


def test_dim_from_weights_takes_rank_and_alpha(images: Images, first: bytes) -> None:
    initial = initial_from_bytes(first)
    parameters = plan_of(images[:1], rank=16, dim_from_weights=True).parameters
    taken = initial.with_own_dimensions(parameters)
    assert (taken.rank, taken.alpha) == (4, 6.0)
    assert initial.with_own_dimensions(replace(parameters, dim_from_weights=False)).rank == 16


@pytest.mark.parametrize("rank", [4, 200])
def test_a_continuation_keeps_the_scale_and_alpha_of_rslora(
    trainer: DiffusionTrainer, images: Images, rank: int
) -> None:
    plan = plan_of(images[:2], rank=rank, alpha=1024.0, use_rslora=True)
    initial = initial_from_bytes(run(trainer, plan, steps=0).weights)
    again = plan_of(images[:2], rank=8, use_rslora=True, dim_from_weights=True)
    taken = initial.with_own_dimensions(again.parameters)
    assert (taken.rank, taken.alpha) == (rank, 1024.0)
    assert taken.lora_scale == plan.parameters.lora_scale


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rank": 8}, "rank 4 and this run 8: set rank to 4, or dim_from_weights"),
        ({"use_dora": True}, "set use_dora as in"),
        ({"alpha": 1e-6}, "alpha is too small to continue network_weights: raise it"),
        ({"alpha": 5e-324}, "alpha is too small"),
    ],
)
def test_an_option_that_does_not_fit_the_lora_is_named(
    trainer: DiffusionTrainer,
    images: Images,
    first: bytes,
    parameters: dict[str, Any],
    message: str,
) -> None:
    plan = plan_from(images, initial_from_bytes(first), **parameters)
    with pytest.raises(InvalidLoraFile, match=message), trainer.open(plan, None):
        pass
    run(trainer, plan_of(images[:1], epochs=1))  # the trainer is as good as before


def test_layers_that_the_run_does_not_train_are_named(
    trainer: DiffusionTrainer, images: Images
) -> None:
    wide = run(trainer, plan_of(images[:1], lora_targets="attention+ff", epochs=1)).weights
    plan = plan_from(images, initial_from_bytes(wide))
    with pytest.raises(InvalidLoraFile, match=r"ff\.net.*lora_targets"), trainer.open(plan, None):
        pass


def test_layers_of_several_ranks_are_named(first: bytes) -> None:
    weights = dict(decode_lora(first)[0])
    name, layer = next(iter(weights.items()))
    weights[name] = replace(layer, down=layer.down[:2], up=layer.up[:, :2])
    (data,) = encode_lora(weights, {}, LoraFormat.KOHYA, "x").values()
    with pytest.raises(InvalidLoraFile, match=r"several ranks: .* of rank 4, 1 of rank 2"):
        initial_from_bytes(data)


def test_a_worker_reads_a_lora_only_from_allowed_buckets() -> None:
    from domain.task import InvalidTask
    from entrypoints.connections import task_parser
    from tests.services.settings import make_settings

    settings = make_settings(aws_storage_bucket_name="media", model_bucket_name="models")
    parse = task_parser(settings)

    def message(weights: str) -> bytes:
        task = {
            "task_id": "550e8400-e29b-41d4-a716-446655440000",
            "type": "model_training",
            "data": {
                "style_id": 1,
                "images": ["s3://media/a.png"],
                "parameters": {"network_weights": weights, "epochs": 1},
            },
        }
        return json.dumps(task).encode()

    for allowed in ("s3://models/models/style_1.safetensors", "s3://media/a.safetensors"):
        assert parse(message(allowed)).requested.named["network_weights"] == allowed
    for rejected in ("s3://other/a.safetensors", "/etc/passwd"):
        with pytest.raises(InvalidTask, match="network_weights"):
            parse(message(rejected))
