"""Out of memory: smaller batches, then gradient checkpointing, and only then a failure."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters.common.device_memory import split_on_oom
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.oom import MemoryPlan
from adapters.diffusion.trainer import DiffusionTrainer
from domain.failure import FailureCode, TrainingFailed
from domain.image import TrainingImage
from tests.diffusion.runs import gradient_of, limit_memory, plan_of, run

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]


def assert_same_gradient(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


def test_the_memory_plan_halves_the_batch_then_checkpoints_then_ends() -> None:
    steps = [MemoryPlan(6)]
    while (smaller := steps[-1].reduced(6)) is not None:
        steps.append(smaller)
    assert steps == [
        MemoryPlan(6),
        MemoryPlan(3),
        MemoryPlan(2),
        MemoryPlan(1),
        MemoryPlan(1, checkpointing=True),
    ]
    assert MemoryPlan(6).reduced(2) == MemoryPlan(1)


def test_out_of_memory_leads_to_smaller_batches_with_the_same_gradient(
    trainer: DiffusionTrainer,
    base: BaseModel,
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = plan_of(images[:4], batch_size=4, epochs=2, alpha=8.0)
    with trainer.open(plan, None) as session:
        session.advance()
        full, record = gradient_of(session), session.history[0]
    passes = limit_memory(monkeypatch, base.unet, 2)
    with trainer.open(plan, None) as session:
        session.advance()
        assert_same_gradient(gradient_of(session), full)
        assert session.history[0].loss == pytest.approx(record.loss, rel=1e-5)
        assert session.history[0].gradient_norm == pytest.approx(record.gradient_norm, rel=1e-4)
        session.advance()
    # Found out in the first step; the second step starts with batches of two.
    assert passes == [2, 2, 2, 2]
    assert caplog.text.count("out of memory, continuing with 2 images at a time") == 1


def test_then_gradient_checkpointing_gives_the_same_gradient(
    trainer: DiffusionTrainer, base: BaseModel, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(images[:2], batch_size=2, epochs=1)
    with trainer.open(plan, None) as session:
        session.advance()
        full = gradient_of(session)
    limit_memory(monkeypatch, base.unet, 0, unless_recomputing=True)
    with trainer.open(plan, None) as session:
        session.advance()
        assert_same_gradient(gradient_of(session), full)
        assert base.unet.is_gradient_checkpointing
    assert not base.unet.is_gradient_checkpointing


def test_out_of_memory_after_all_reductions_is_reported(
    trainer: DiffusionTrainer, base: BaseModel, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, base.unet, 0)
    plan = plan_of(images[:2], batch_size=2)
    with trainer.open(plan, None) as session, pytest.raises(TrainingFailed) as failed:
        session.advance()
    assert failed.value.failure.code is FailureCode.GPU_OOM
    assert "too little memory" in failed.value.failure.message


def test_a_resumed_run_keeps_its_memory_plan_and_gives_the_same_bytes(
    trainer: DiffusionTrainer, base: BaseModel, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(images[:4], batch_size=4, epochs=3)
    limit_memory(monkeypatch, base.unet, 1)
    uninterrupted = run(trainer, plan)
    first = run(trainer, plan, steps=1)
    passes = limit_memory(monkeypatch, base.unet, 4)
    assert run(trainer, plan, resume=first.checkpoint) == uninterrupted
    assert set(passes) == {1}


def test_images_are_encoded_one_by_one_where_memory_is_short(
    trainer: DiffusionTrainer,
    base: BaseModel,
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_of(images[:3], epochs=1)
    together = run(trainer, plan)
    encode = base.vae.encode

    def limited(pixels: torch.Tensor) -> Any:
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(pixels)

    monkeypatch.setattr(base.vae, "encode", limited)
    assert run(trainer, plan).history[0].loss == pytest.approx(together.history[0].loss, rel=1e-4)


def halves(text: str) -> list[str]:
    middle = len(text) // 2
    return [half for half in (text[:middle], text[middle:]) if half]


@pytest.mark.parametrize(
    ("most", "error", "results"),
    [
        (9, None, ["ABCDE"]),
        (3, None, ["AB", "CDE"]),
        (1, None, [*"ABCDE"]),
        (0, None, "CUDA out of memory"),
        (0, RuntimeError("shapes cannot be multiplied"), "shapes cannot be multiplied"),
    ],
)
def test_work_is_split_until_it_fits(
    most: int, error: Exception | None, results: list[str] | str
) -> None:
    def action(part: str) -> str:
        if len(part) > most:
            raise error or torch.OutOfMemoryError("CUDA out of memory")
        return part.upper()

    if isinstance(results, str):
        with pytest.raises(RuntimeError, match=results):
            split_on_oom(action, "abcde", halves)
    else:
        assert split_on_oom(action, "abcde", halves) == results
