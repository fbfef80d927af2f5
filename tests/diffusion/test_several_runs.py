"""Several runs over one base: each is what it would have been alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from adapters.diffusion.backend import Backend
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.oom import MemoryPlan
from adapters.diffusion.trainer import DiffusionTrainer, compatibility_key
from adapters.images.decode import decode
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.image import TrainingImage
from domain.results import Checkpoint
from domain.training_plan import TrainingPlan
from tests.diffusion.fake_cuda_graph import Tape
from tests.diffusion.runs import (
    EVERY_OPTION,
    Outcome,
    drive,
    plan_of,
    run,
    weights_of,
)

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]
SLOTS = 3
LONG = 60.0
"""Seconds to wait for late runs, so that company does not depend on how threads are scheduled."""


@pytest.fixture
def seated(base: BaseModel) -> DiffusionTrainer:
    """A trainer with slots."""
    return DiffusionTrainer(base, decode, slots=SLOTS, max_wait=LONG)


@pytest.fixture(scope="module")
def plans(images: Images) -> list[TrainingPlan]:
    """Other images, lengths, rates, seeds and options, and a bucket that only one has."""
    return [
        plan_of(images[:2], epochs=3, seed=1),
        plan_of(images[3:], epochs=1, seed=2, learning_rate=3e-3, **EVERY_OPTION),
        plan_of(images[:1], epochs=4, seed=3, lr_scheduler="linear"),
    ]


@pytest.fixture(scope="module")
def joint_outcomes(base: BaseModel, plans: list[TrainingPlan]) -> list[Outcome]:
    return together(DiffusionTrainer(base, decode, slots=SLOTS, max_wait=LONG), plans)


def in_threads(sessions: Sequence[Any], action: Callable[[Any], Any]) -> list[Any]:
    """What ``action`` gives for each session, each in a thread of its own."""
    with ThreadPoolExecutor(len(sessions)) as pool:
        return list(pool.map(action, sessions))


def outcome_of(session: Any) -> Outcome:
    return Outcome(session.weights(), session.checkpoint().data, session.history)


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


def test_checkpoints_lead_from_together_to_alone_and_back(
    trainer: DiffusionTrainer, seated: DiffusionTrainer, plans: list[TrainingPlan]
) -> None:
    def first_step(session: Any) -> Checkpoint:
        session.advance()
        taken: Checkpoint = session.checkpoint()
        return taken

    with ExitStack() as stack:
        taken = in_threads(sessions_of(stack, seated, plans[:2]), first_step)
    whole = run(trainer, plans[0])
    assert_alike(run(trainer, plans[0], resume=taken[0].data), whole)
    first = run(trainer, plans[0], steps=4)
    found = together(seated, plans[:2], [first.checkpoint, taken[1].data])
    assert_alike(found[0], whole)
    assert_alike(found[1], run(trainer, plans[1]))


def recording(base: BaseModel, recorder: Tape, max_wait: float = LONG) -> DiffusionTrainer:
    return DiffusionTrainer(
        base,
        decode,
        backend=Backend(make_recorder=lambda _: recorder),
        slots=SLOTS,
        max_wait=max_wait,
    )


def test_recorded_passes_give_the_bytes_of_plain_ones(
    seated: DiffusionTrainer, base: BaseModel, images: Images
) -> None:
    plans = [
        plan_of(images[:2], epochs=2, seed=1, validation_epochs=0),
        plan_of(images[1:3], epochs=2, seed=2, learning_rate=3e-3, validation_epochs=0),
    ]
    recorder = Tape()
    assert together(recording(base, recorder), plans) == together(seated, plans)
    assert (recorder.recorded, recorder.replayed) == (1, 2)


def test_a_recording_serves_runs_that_come_later(
    trainer: DiffusionTrainer, base: BaseModel, images: Images
) -> None:
    recorder = Tape()
    fast = recording(base, recorder)
    newcomer = plan_of(images[2:4], epochs=2, seed=3, validation_split=0.0, validation_epochs=0)
    with fast.open(plan_of(images[:2], epochs=4, seed=1, validation_epochs=0), None) as first:
        with fast.open(
            plan_of(images[1:3], epochs=2, seed=2, validation_epochs=0), None
        ) as second:
            in_threads([first, second], lambda session: [session.advance() for _ in range(4)])
        before = recorder.recorded, recorder.replayed
        with fast.open(newcomer, None) as third:
            in_threads([first, third], lambda session: [session.advance() for _ in range(4)])
            found = outcome_of(third)
    assert (recorder.recorded, recorder.replayed) == (before[0], before[1] + 4)
    assert_alike(found, run(trainer, newcomer))


def test_previews_are_each_runs_own_and_the_bases(
    trainer: DiffusionTrainer, seated: DiffusionTrainer, images: Images
) -> None:
    plans = [plan_of(images[:1], seed=seed, sample_prompts=("a sun",)) for seed in (1, 2)]
    alone = []
    for plan in plans:
        with trainer.open(plan, None) as session:
            weights_of(session).add_(0.1 * plan.parameters.seed)
            alone.append(session.previews(adapted=True))
            bare = session.previews(adapted=False)
    assert alone[0][0].png != alone[1][0].png
    with ExitStack() as stack:
        sessions = sessions_of(stack, seated, plans)
        for session, wanted in zip(sessions, alone, strict=True):
            weights_of(session).add_(0.1 * session.parameters.seed)
            assert pixels_apart(session.previews(adapted=True)[0].png, wanted[0].png) < 2
        assert sessions[1].previews(adapted=False) == bare


def pixels_apart(one: bytes, other: bytes) -> float:
    import numpy as np

    first, second = (np.asarray(decode(png), dtype=float) for png in (one, other))
    return float(np.abs(first - second).max())


def test_a_run_that_fails_leaves_the_others(
    trainer: DiffusionTrainer, seated: DiffusionTrainer, plans: list[TrainingPlan]
) -> None:
    with ExitStack() as stack:
        sessions = sessions_of(stack, seated, plans[:2])
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


def limit_memory(monkeypatch: pytest.MonkeyPatch, base: BaseModel, most: int) -> list[int]:
    """Let passes of more than so many images run out of memory; the list has those that ran."""
    forward, sizes = base.unet.forward, []

    def limited(sample: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        if torch.is_grad_enabled():
            if len(sample) > most:
                raise torch.OutOfMemoryError
            sizes.append(len(sample))
        return forward(sample, *arguments, **keywords)

    monkeypatch.setattr(base.unet, "forward", limited)
    return sizes


def test_memory_that_ends_leads_to_fewer_runs_in_a_pass(
    seated: DiffusionTrainer,
    base: BaseModel,
    plans: list[TrainingPlan],
    joint_outcomes: list[Outcome],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes = limit_memory(monkeypatch, base, 1)
    for one, other in zip(together(seated, plans), joint_outcomes, strict=True):
        assert_alike(one, other)
    assert set(sizes) == {1}
    assert "out of memory, continuing with 1 runs in one pass" in caplog.text


def test_a_run_too_large_for_a_pass_saves_memory_by_itself(
    trainer: DiffusionTrainer,
    seated: DiffusionTrainer,
    base: BaseModel,
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = plan_of(images[:4], epochs=2, batch_size=4, validation_split=0.0)
    small = plan_of(images[:2], epochs=3, seed=2)
    wanted = [run(trainer, large), run(trainer, small)]
    sizes = limit_memory(monkeypatch, base, 2)
    with ExitStack() as stack:
        sessions = sessions_of(stack, seated, [large, small])
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


def test_a_run_that_does_not_fit_beside_others_may_be_tried_again_and_alone_not(
    seated: DiffusionTrainer,
    base: BaseModel,
    plans: list[TrainingPlan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit_memory(monkeypatch, base, 0)
    with ExitStack() as stack:
        sessions = sessions_of(stack, seated, plans[:2])
        found = in_threads(sessions, lambda session: failure_of(session.advance))
    with seated.open(plans[0], None) as session:
        alone = failure_of(session.advance)
    assert [failure.code for failure in (*found, alone)] == [FailureCode.GPU_OOM] * 3
    assert [failure.retryable for failure in (*found, alone)] == [True, True, False]


@pytest.mark.parametrize("what", ["previews", "measurement"])
def test_so_may_one_whose_previews_or_measurements_do_not_fit(
    base: BaseModel, images: Images, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    seated = DiffusionTrainer(base, decode, slots=SLOTS)
    plan = plan_of(images[:1], validation_epochs=1)
    forward = base.unet.forward

    def limited(*arguments: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():
            raise torch.OutOfMemoryError
        return forward(*arguments, **keywords)

    def failure(session: Any) -> Failure:
        with monkeypatch.context() as full:  # not before: opening a run measures the base
            full.setattr(base.unet, "forward", limited)
            if what == "measurement":
                return failure_of(session.advance)
            return failure_of(lambda: session.previews(adapted=True))

    with seated.open(plan, None) as first, seated.open(plan, None):
        assert failure(first).retryable
    with seated.open(plan, None) as session:
        assert not failure(session).retryable


def test_so_may_a_newcomer_for_whose_images_there_is_no_room(
    seated: DiffusionTrainer, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    plan = plan_of(images[:1])
    with seated.open(plan, None):
        monkeypatch.setattr("adapters.diffusion.trainer.prepare", full)
        assert failure_of(lambda: seated.open(plan, None).__enter__()).retryable
    assert not failure_of(lambda: seated.open(plan, None).__enter__()).retryable


def test_only_the_run_that_has_to_recomputes_its_feature_maps(
    trainer: DiffusionTrainer,
    seated: DiffusionTrainer,
    base: BaseModel,
    plans: list[TrainingPlan],
) -> None:
    chosen = [plans[0], plans[2]]
    wanted = [run(trainer, plan) for plan in chosen]
    with ExitStack() as stack:
        sessions = sessions_of(stack, seated, chosen)
        sessions[0].memory = MemoryPlan(1, checkpointing=True)
        in_threads(sessions, drive)
        assert sessions[1].memory == MemoryPlan(1)
        for session, other in zip(sessions, wanted, strict=True):
            assert_alike(outcome_of(session), other)


def test_a_run_that_cannot_save_more_has_the_others_graphs_dropped(
    base: BaseModel, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = recording(base, Tape(), max_wait=0.0)
    assert fast.recordings is None
    plans = [plan_of(images[:2], epochs=4, seed=seed) for seed in (1, 2)]
    with ExitStack() as stack:
        first, last = sessions_of(stack, fast, plans)
        for _ in range(4):
            first.advance()
        assert fast.recordings == 1
        last.memory = MemoryPlan(1, checkpointing=True)
        forward = base.unet.forward

        def limited(*arguments: Any, **keywords: Any) -> Any:
            if base.unet.is_gradient_checkpointing and fast.recordings:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(*arguments, **keywords)

        monkeypatch.setattr(base.unet, "forward", limited)
        assert last.advance().step == 1
        assert fast.recordings == 0


def test_the_base_is_the_same_afterwards_and_the_trainer_free(
    seated: DiffusionTrainer, base: BaseModel, plans: list[TrainingPlan]
) -> None:
    before = {name: weight.clone() for name, weight in base.unet.state_dict().items()}
    with ExitStack() as stack:
        sessions = sessions_of(stack, seated, plans)
        in_threads(sessions, lambda session: session.advance())
        dora = plan_of(plans[0].images, use_dora=True)
        with pytest.raises(RuntimeError, match="open run"):
            stack.enter_context(seated.open(dora, None))
    after = base.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert run(seated, dora, steps=1).weights
    assert run(seated, plans[0], steps=1).weights


def test_only_runs_with_adapters_alike_are_of_one_kind(images: Images) -> None:
    first = compatibility_key(plan_of(images[:1]).parameters)
    alike: dict[str, Any] = {
        "seed": 5,
        "learning_rate": 1e-2,
        "batch_size": 4,
        "snr_gamma": 5.0,
        "epochs": 9,
    }
    assert compatibility_key(plan_of(images[:1], **alike).parameters) == first
    for other in ({"rank": 2}, {"alpha": 1.0}, {"lora_targets": "attention+ff"}):
        assert compatibility_key(plan_of(images[:1], **other).parameters) not in (first, None)
    for alone in ({"lora_dropout": 0.1}, {"optimizer": "prodigy"}, {"use_dora": True}):
        assert compatibility_key(plan_of(images[:1], **alone).parameters) is None
