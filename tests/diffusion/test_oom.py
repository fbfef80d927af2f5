"""A full device: less at a time, then recomputing, and only then a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from adapters.common.device_memory import split_on_oom
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.oom import MemoryPlan, retry_after_freeing
from adapters.diffusion.trainer import DiffusionTrainer
from domain.failure import FailureCode, TrainingFailed
from domain.image import TrainingImage
from tests.diffusion.runs import gradient_of, plan_of, run

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]
Limit = Callable[..., list[int]]


@pytest.fixture
def limit(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Lets the denoiser run out of memory above a number of images, after its forward pass."""
    forward = base.unet.forward

    def set_to(most: int, *, unless_recomputing: bool = False) -> list[int]:
        passes: list[int] = []

        def limited(sample: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
            result = forward(sample, *arguments, **keywords)
            recomputing = base.unet.is_gradient_checkpointing
            allowed = len(sample) <= most or (unless_recomputing and recomputing)
            if torch.is_grad_enabled() and not allowed:
                raise torch.OutOfMemoryError("CUDA out of memory")
            if torch.is_grad_enabled():
                passes.append(len(sample))
            return result

        monkeypatch.setattr(base.unet, "forward", limited)
        return passes

    return set_to


def assert_same_gradient(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


def test_the_ladder_halves_the_images_then_recomputes_then_ends() -> None:
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


def test_a_full_card_is_met_by_smaller_passes_with_the_same_gradient(
    trainer: DiffusionTrainer, images: Images, limit: Limit, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(images[:4], batch_size=4, epochs=2, alpha=8.0)
    with trainer.open(plan, None) as session:
        session.advance()
        whole, record = gradient_of(session), session.history[0]
    passes = limit(2)
    with trainer.open(plan, None) as session:
        session.advance()
        assert_same_gradient(gradient_of(session), whole)
        assert session.history[0].loss == pytest.approx(record.loss, rel=1e-5)
        assert session.history[0].gradient_norm == pytest.approx(record.gradient_norm, rel=1e-4)
        session.advance()
    # It is found out once; the second step goes by two at once.
    assert passes == [2, 2, 2, 2]
    assert caplog.text.count("out of memory, continuing with 2 images at a time") == 1


def test_then_feature_maps_are_recomputed_with_the_same_gradient(
    trainer: DiffusionTrainer, base: BaseModel, images: Images, limit: Limit
) -> None:
    plan = plan_of(images[:2], batch_size=2, epochs=1)
    with trainer.open(plan, None) as session:
        session.advance()
        whole = gradient_of(session)
    limit(0, unless_recomputing=True)
    with trainer.open(plan, None) as session:
        session.advance()
        assert_same_gradient(gradient_of(session), whole)
        assert base.unet.is_gradient_checkpointing
    assert not base.unet.is_gradient_checkpointing


def test_a_card_that_is_full_even_so_is_told_as_such(
    trainer: DiffusionTrainer, images: Images, limit: Limit
) -> None:
    limit(0)
    plan = plan_of(images[:2], batch_size=2)
    with trainer.open(plan, None) as session, pytest.raises(TrainingFailed) as failed:
        session.advance()
    assert failed.value.failure.code is FailureCode.GPU_OOM
    assert "too little memory" in failed.value.failure.message


def test_a_resumed_run_goes_on_as_thriftily_and_gives_the_same_bytes(
    trainer: DiffusionTrainer, images: Images, limit: Limit
) -> None:
    plan = plan_of(images[:4], batch_size=4, epochs=3)
    limit(1)
    whole = run(trainer, plan)
    first = run(trainer, plan, steps=1)
    passes = limit(4)
    assert run(trainer, plan, resume=first.checkpoint) == whole
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


FULL = torch.OutOfMemoryError("CUDA out of memory")
DEFECT = RuntimeError("shapes cannot be multiplied")


@dataclass
class Model:
    """As much of a training model as freeing memory takes."""

    runs: int = 1
    freed: int = 0

    def free_graphs(self) -> bool:
        self.freed += 1
        return True


def attempted(model: Any, *errors: Exception) -> Any:
    """What comes of an action that fails with these before it succeeds."""
    left = list(errors)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "result"

    try:
        return retry_after_freeing(model, action)
    except Exception as error:
        return error.failure.retryable if isinstance(error, TrainingFailed) else str(error)


def test_memory_is_freed_once_and_for_want_of_memory_only() -> None:
    for errors, result, freed in (
        ([], "result", 0),
        ([FULL], "result", 1),
        ([FULL, FULL], False, 1),
        ([DEFECT], str(DEFECT), 0),
        ([FULL, DEFECT], str(DEFECT), 1),
    ):
        model = Model()
        assert (attempted(model, *errors), model.freed) == (result, freed)
    assert attempted(Model(runs=2), FULL, FULL) is True


def halves(whole: str) -> list[str]:
    middle = len(whole) // 2
    return [half for half in (whole[:middle], whole[middle:]) if half]


@pytest.mark.parametrize(
    ("most", "results"), [(9, ["ABCDE"]), (3, ["AB", "CDE"]), (1, [*"ABCDE"])]
)
def test_the_whole_is_done_in_as_few_parts_as_fit(most: int, results: list[str]) -> None:
    def action(part: str) -> str:
        if len(part) > most:
            raise FULL
        return part.upper()

    assert split_on_oom(action, "abcde", halves) == results


@pytest.mark.parametrize(("error", "tried"), [(FULL, ["abcd", "ab", "a"]), (DEFECT, ["abcd"])])
def test_what_does_not_fit_in_parts_either_or_is_a_defect_is_raised(
    error: Exception, tried: list[str]
) -> None:
    seen = []

    def action(part: str) -> None:
        seen.append(part)
        raise error

    with pytest.raises(type(error), match=str(error)):
        split_on_oom(action, "abcd", halves)
    assert seen == tried
