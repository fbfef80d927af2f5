"""Several runs over one base: each equals the same run alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.execution import ExecutionOptions
from adapters.diffusion.oom import MemoryPlan
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.image import TrainingImage
from domain.results import Checkpoint
from domain.training_plan import TrainingPlan
from tests.diffusion.conftest import PREVIEW_STEPS
from tests.diffusion.fake_cuda_graph import FakeGraphRecorder
from tests.diffusion.runs import (
    EVERY_OPTION,
    Outcome,
    drive,
    limit_memory,
    outcome_of,
    plan_of,
    run,
    weights_of,
)

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]
SLOTS = 3
LONG = 60.0
"""Seconds to wait for late runs, so that batching does not depend on thread scheduling."""


@pytest.fixture
def shared(base: BaseModel) -> DiffusionTrainer:
    """A trainer with slots."""
    return DiffusionTrainer(base, decode, slots=SLOTS, max_wait=LONG)


@pytest.fixture(scope="module")
def plans(images: Images) -> list[TrainingPlan]:
    """Three plans with different images, lengths, rates, seeds, options and buckets."""
    return [
        plan_of(images[:2], epochs=3, seed=1),
        plan_of(images[3:], epochs=1, seed=2, learning_rate=3e-3, **EVERY_OPTION),
        plan_of(images[:1], epochs=4, seed=3, lr_scheduler="linear"),
    ]


@pytest.fixture(scope="module")
def joint_outcomes(base: BaseModel, plans: list[TrainingPlan]) -> list[Outcome]:
    return together(DiffusionTrainer(base, decode, slots=SLOTS, max_wait=LONG), plans)


def in_threads(sessions: Sequence[Any], action: Callable[[Any], Any]) -> list[Any]:
    """Run ``action`` on each session, each in its own thread. Returns the results."""
    with ThreadPoolExecutor(len(sessions)) as pool:
        return list(pool.map(action, sessions))


def sessions_of(
    stack: ExitStack,
    trainer: DiffusionTrainer,
    plans: Sequence[TrainingPlan],
    resume: Sequence[bytes | None] = (None,) * SLOTS,
) -> list[Any]:
    return [
        stack.enter_context(trainer.open(plan, data))
        for plan, data in zip(plans, resume, strict=False)
    ]


def together(
    trainer: DiffusionTrainer,
    plans: Sequence[TrainingPlan],
    resume: Sequence[bytes | None] = (None,) * SLOTS,
) -> list[Outcome]:
    with ExitStack() as stack:
        sessions = sessions_of(stack, trainer, plans, resume)
        in_threads(sessions, drive)
        return [outcome_of(session) for session in sessions]


def assert_alike(found: Outcome, wanted: Outcome) -> None:
    assert len(found.history) == len(wanted.history)
    for one, other in zip(found.history, wanted.history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-4)
        assert one.learning_rate == other.learning_rate
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=2e-3)


def test_each_run_ends_where_it_would_have_ended_alone(
    trainer: DiffusionTrainer, plans: list[TrainingPlan], joint_outcomes: list[Outcome]
) -> None:
    for plan, outcome in zip(plans, joint_outcomes, strict=True):
        assert_alike(outcome, run(trainer, plan))
    assert len({outcome.weights for outcome in joint_outcomes}) == 3


def test_checkpoints_move_between_batched_and_single_runs(
    trainer: DiffusionTrainer, shared: DiffusionTrainer, plans: list[TrainingPlan]
) -> None:
    def first_step(session: Any) -> Checkpoint:
        session.advance()
        taken: Checkpoint = session.checkpoint()
        return taken

    with ExitStack() as stack:
        taken = in_threads(sessions_of(stack, shared, plans[:2]), first_step)
    uninterrupted = run(trainer, plans[0])
    assert_alike(run(trainer, plans[0], resume=taken[0].data), uninterrupted)
    first = run(trainer, plans[0], steps=4)
    found = together(shared, plans[:2], [first.checkpoint, taken[1].data])
    assert_alike(found[0], uninterrupted)
    assert_alike(found[1], run(trainer, plans[1]))


def recording(base: BaseModel, recorder: FakeGraphRecorder) -> DiffusionTrainer:
    return DiffusionTrainer(
        base,
        decode,
        execution=ExecutionOptions(make_recorder=lambda _: recorder),
        slots=SLOTS,
        max_wait=LONG,
    )


def test_captured_passes_equal_eager_ones_bit_for_bit(
    shared: DiffusionTrainer, base: BaseModel, images: Images
) -> None:
    plans = [
        plan_of(images[:2], epochs=2, seed=1),
        plan_of(images[1:3], epochs=2, seed=2, learning_rate=3e-3),
    ]
    recorder = FakeGraphRecorder()
    assert together(recording(base, recorder), plans) == together(shared, plans)
    assert (recorder.recorded, recorder.replayed) == (1, 2)


def test_a_graph_is_reused_by_later_runs(
    trainer: DiffusionTrainer, base: BaseModel, images: Images
) -> None:
    recorder = FakeGraphRecorder()
    fast = recording(base, recorder)
    newcomer = plan_of(images[2:4], epochs=2, seed=3, validation_split=0.0)
    with fast.open(plan_of(images[:2], epochs=4, seed=1), None) as first:
        with fast.open(plan_of(images[1:3], epochs=2, seed=2), None) as second:
            in_threads([first, second], lambda session: [session.advance() for _ in range(4)])
        before = recorder.recorded, recorder.replayed
        with fast.open(newcomer, None) as third:
            in_threads([first, third], lambda session: [session.advance() for _ in range(4)])
            found = outcome_of(third)
    assert (recorder.recorded, recorder.replayed) == (before[0], before[1] + 4)
    assert_alike(found, run(trainer, newcomer))


def test_previews_are_those_of_each_run_and_of_the_base(
    trainer: DiffusionTrainer, base: BaseModel, images: Images
) -> None:
    shared = DiffusionTrainer(base, decode, slots=SLOTS, preview_steps=PREVIEW_STEPS)
    plans = [plan_of(images[:1], seed=seed, sample_prompts=("a sun",)) for seed in (1, 2)]
    alone = []
    for plan in plans:
        with trainer.open(plan, None) as session:
            weights_of(session).add_(0.1 * plan.parameters.seed)
            alone.append(session.previews(with_lora=True))
            bare = session.previews(with_lora=False)
    assert alone[0][0].png != alone[1][0].png
    with ExitStack() as stack:
        sessions = sessions_of(stack, shared, plans)
        for session, wanted in zip(sessions, alone, strict=True):
            weights_of(session).add_(0.1 * session.parameters.seed)
            assert pixels_apart(session.previews(with_lora=True)[0].png, wanted[0].png) < 2
        assert sessions[1].previews(with_lora=False) == bare


def pixels_apart(one: bytes, other: bytes) -> float:
    import numpy as np

    first, second = (np.asarray(decode(png), dtype=float) for png in (one, other))
    return float(np.abs(first - second).max())


def test_a_failing_run_does_not_affect_the_others(
    trainer: DiffusionTrainer, shared: DiffusionTrainer, plans: list[TrainingPlan]
) -> None:
    with ExitStack() as stack:
        sessions = sessions_of(stack, shared, plans[:2])
        broken = sessions[0]

        def spoil(session: Any) -> TrainingFailed | None:
            try:
                while not session.finished:
                    if session is broken:
                        weights_of(session)[0] = float("nan")
                    session.advance()
            except TrainingFailed as failed:
                return failed
            return None

        failure, none = in_threads(sessions, spoil)
        found = outcome_of(sessions[1])
    assert failure.failure.code is FailureCode.LOSS_DIVERGED
    assert none is None
    assert_alike(found, run(trainer, plans[1]))


def test_out_of_memory_leads_to_fewer_runs_per_pass(
    shared: DiffusionTrainer,
    base: BaseModel,
    plans: list[TrainingPlan],
    joint_outcomes: list[Outcome],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes = limit_memory(monkeypatch, base.unet, 1)
    for one, other in zip(together(shared, plans), joint_outcomes, strict=True):
        assert_alike(one, other)
    assert set(sizes) == {1}
    assert "out of memory, continuing with 1 runs in one pass" in caplog.text


def test_a_run_too_large_for_a_pass_reduces_its_own_memory(
    trainer: DiffusionTrainer,
    shared: DiffusionTrainer,
    base: BaseModel,
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = plan_of(images[:4], epochs=2, batch_size=4, validation_split=0.0)
    small = plan_of(images[:2], epochs=3, seed=2)
    wanted = [run(trainer, large), run(trainer, small)]
    sizes = limit_memory(monkeypatch, base.unet, 2)
    with ExitStack() as stack:
        sessions = sessions_of(stack, shared, [large, small])
        in_threads(sessions, drive)
        found = [outcome_of(session) for session in sessions]
        assert sessions[0].memory == MemoryPlan(2)
        assert not sessions[1].reduced
    for one, other in zip(found, wanted, strict=True):
        assert_alike(one, other)
    assert max(sizes) == 2


def failure_of(action: Callable[[], object]) -> Failure:
    with pytest.raises(TrainingFailed) as failed:
        action()
    return failed.value.failure


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("what", ["steps", "previews"])
def test_out_of_memory_can_be_retried_in_a_batch_but_not_alone(
    base: BaseModel, images: Images, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    trainer, plan = DiffusionTrainer(base, decode, slots=SLOTS), plan_of(images[:1])
    monkeypatch.setattr(base.unet, "forward", out_of_memory)

    def failure(session: Any) -> Failure:
        steps = what == "steps"
        return failure_of(session.advance if steps else lambda: session.previews(with_lora=True))

    with trainer.open(plan, None) as first, trainer.open(plan, None):
        found = [failure(first)]
    with trainer.open(plan, None) as alone:
        found += [failure(alone)]
    assert [failure.code for failure in found] == [FailureCode.GPU_OOM] * 2
    assert [failure.retryable for failure in found] == [True, False]


def test_out_of_memory_while_encoding_for_a_batch_can_be_retried(
    shared: DiffusionTrainer, base: BaseModel, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(images[:1])
    with shared.open(plan, None):
        monkeypatch.setattr(base.vae, "encode", out_of_memory)
        assert failure_of(lambda: shared.open(plan, None).__enter__()).retryable
    assert not failure_of(lambda: shared.open(plan, None).__enter__()).retryable


def test_the_base_is_restored_and_the_trainer_usable(
    shared: DiffusionTrainer, base: BaseModel, plans: list[TrainingPlan]
) -> None:
    before = {name: weight.clone() for name, weight in base.unet.state_dict().items()}
    with ExitStack() as stack:
        sessions = sessions_of(stack, shared, plans)
        in_threads(sessions, lambda session: session.advance())
        dora = plan_of(plans[0].images, use_dora=True)
        with pytest.raises(RuntimeError, match="open run"):
            stack.enter_context(shared.open(dora, None))
    after = base.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert run(shared, dora, steps=1).weights
    assert run(shared, plans[0], steps=1).weights


def test_only_runs_with_equal_lora_shapes_have_one_batch_key(
    base: BaseModel, images: Images
) -> None:
    batch_key = DiffusionTrainer(base, decode, slots=2).batch_key
    first = batch_key(plan_of(images[:1]).parameters)
    alike: dict[str, Any] = {
        "seed": 5,
        "learning_rate": 1e-2,
        "batch_size": 4,
        "snr_gamma": 5.0,
        "epochs": 9,
    }
    assert batch_key(plan_of(images[:1], **alike).parameters) == first
    for other in ({"rank": 2}, {"alpha": 1.0}, {"lora_targets": "attention+ff"}):
        assert batch_key(plan_of(images[:1], **other).parameters) not in (first, None)
    for alone in ({"lora_dropout": 0.1}, {"optimizer": "prodigy"}, {"use_dora": True}):
        assert batch_key(plan_of(images[:1], **alone).parameters) is None
