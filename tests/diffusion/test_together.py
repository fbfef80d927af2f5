"""Several runs in one pass: each is what it would have been alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from adapters.diffusion.base_model import BaseModel
from adapters.diffusion.strategy import Strategy
from adapters.diffusion.together import JointSession, likeness
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.pillow import decode
from application.ports import StepReport, TrainingPlan
from domain.failure import FailureCode, TrainingFailed
from domain.picture import Picture
from tests.diffusion.runs import EVERY_OPTION, Outcome, Rerun, plan_of, run, weights_of

pytestmark = pytest.mark.integration

Pictures = tuple[Picture, ...]


@pytest.fixture(scope="module")
def plans(pictures: Pictures) -> list[TrainingPlan]:
    """Other pictures, lengths, rates, seeds and options, and a bucket that only one has."""
    return [
        plan_of(pictures[:2], epochs=3, seed=1),
        plan_of(pictures[3:], epochs=1, seed=2, learning_rate=3e-3, **EVERY_OPTION),
        plan_of(pictures[:1], epochs=4, seed=3, lr_scheduler="linear"),
    ]


@pytest.fixture(scope="module")
def joint_outcomes(base: BaseModel, plans: list[TrainingPlan]) -> list[Outcome]:
    return together(DiffusionTrainer(base, decode), plans)


def outcome_of(session: Any) -> Outcome:
    return Outcome(session.weights(), session.checkpoint().data, session.history)


def drive(joint: JointSession) -> list[Outcome]:
    while not joint.finished:
        joint.advance()
    return [outcome_of(session) for session in joint.sessions]


def together(
    trainer: DiffusionTrainer, plans: Sequence[TrainingPlan], **keywords: Any
) -> list[Outcome]:
    with trainer.open_many([(plan, None) for plan in plans], **keywords) as joint:
        return drive(joint)


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


def test_the_first_gradient_is_that_of_the_run_alone(
    trainer: DiffusionTrainer, plans: list[TrainingPlan]
) -> None:
    alone = []
    for plan in plans:
        with trainer.open(plan, None) as session:
            start = weights_of(session).clone()
            session.advance()
            moments = session._update.optimizer_state.tensors["exp_avg"].clone()
            alone.append((start, moments))
    with trainer.open_many([(plan, None) for plan in plans]) as joint:
        starts = [weights_of(session).clone() for session in joint.sessions]
        joint.advance()
        for session, start, (wanted_start, wanted) in zip(
            joint.sessions, starts, alone, strict=True
        ):
            assert torch.equal(start, wanted_start)
            found = session._update.optimizer_state.tensors["exp_avg"]
            largest = wanted.abs().max().item()
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * largest)


def test_reports_come_run_by_run_and_end_with_each(
    trainer: DiffusionTrainer, plans: list[TrainingPlan]
) -> None:
    reports: list[list[StepReport]] = [[], [], []]
    with trainer.open_many([(plan, None) for plan in plans]) as joint:
        while not joint.finished:
            for own, report in zip(reports, joint.advance(), strict=True):
                own += [report] if isinstance(report, StepReport) else []
    assert [[report.step for report in own] for own in reports] == [
        [1, 2, 3, 4, 5, 6],
        [1, 2],
        [1, 2, 3, 4],
    ]
    assert [own[-1].epoch for own in reports] == [3, 1, 4]


def test_checkpoints_lead_from_together_to_alone_and_back(
    trainer: DiffusionTrainer, plans: list[TrainingPlan]
) -> None:
    with trainer.open_many([(plan, None) for plan in plans[:2]]) as joint:
        joint.advance()
        taken = [session.checkpoint().data for session in joint.sessions]
    whole = run(trainer, plans[0])
    assert_alike(run(trainer, plans[0], resume=taken[0]), whole)
    first = run(trainer, plans[0], steps=4)
    jobs = [(plans[0], first.checkpoint), (plans[1], taken[1])]
    with trainer.open_many(jobs) as joint:
        found = drive(joint)
    assert_alike(found[0], whole)
    assert_alike(found[1], run(trainer, plans[1]))


def test_equal_company_gives_equal_bytes(
    trainer: DiffusionTrainer, plans: list[TrainingPlan], joint_outcomes: list[Outcome]
) -> None:
    assert together(trainer, plans) == joint_outcomes


def test_recorded_passes_give_the_bytes_of_plain_ones(
    trainer: DiffusionTrainer, base: BaseModel, pictures: Pictures
) -> None:
    plans = [
        plan_of(pictures[:2], epochs=2, seed=1),
        plan_of(pictures[1:3], epochs=2, seed=2, learning_rate=3e-3),
    ]
    recorder = Rerun()
    captured = Strategy(capture=True)
    fast = DiffusionTrainer(base, decode, strategy=captured, recorder=lambda: recorder)
    assert together(fast, plans) == together(trainer, plans)
    assert (recorder.recorded, recorder.replayed) == (1, 2)


def test_previews_are_each_runs_own_and_the_bases(
    trainer: DiffusionTrainer, pictures: Pictures
) -> None:
    plans = [plan_of(pictures[:1], seed=seed, sample_prompts=("a sun",)) for seed in (1, 2)]
    alone = []
    for plan in plans:
        with trainer.open(plan, None) as session:
            weights_of(session).add_(0.1 * plan.parameters.seed)
            alone.append(session.previews(adapted=True))
            bare = session.previews(adapted=False)
    assert alone[0][0].png != alone[1][0].png
    with trainer.open_many([(plan, None) for plan in plans]) as joint:
        for session, wanted in zip(joint.sessions, alone, strict=True):
            weights_of(session).add_(0.1 * session._plan.parameters.seed)
            assert pixels_apart(session.previews(adapted=True)[0].png, wanted[0].png) < 2
        assert joint.sessions[1].previews(adapted=False) == bare


def pixels_apart(one: bytes, other: bytes) -> float:
    import numpy as np

    first, second = (np.asarray(decode(png), dtype=float) for png in (one, other))
    return float(np.abs(first - second).max())


def test_a_run_that_fails_leaves_the_others(
    trainer: DiffusionTrainer, plans: list[TrainingPlan]
) -> None:
    failures = []
    with trainer.open_many([(plan, None) for plan in plans[:2]]) as joint:
        broken = joint.sessions[0]
        while not joint.finished:
            if not failures:
                weights_of(broken)[0] = float("nan")
            failures += [o for o in joint.advance() if isinstance(o, TrainingFailed)]
        found = outcome_of(joint.sessions[1])
    assert [failed.failure.code for failed in failures] == [FailureCode.LOSS_DIVERGED]
    assert_alike(found, run(trainer, plans[1]))


def test_memory_that_ends_leads_to_fewer_runs_in_a_pass(
    trainer: DiffusionTrainer,
    base: BaseModel,
    plans: list[TrainingPlan],
    joint_outcomes: list[Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = base.unet.forward

    def limited(sample: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        if torch.is_grad_enabled() and len(sample) > 1:
            raise torch.OutOfMemoryError
        return forward(sample, *arguments, **keywords)

    monkeypatch.setattr(base.unet, "forward", limited)
    with trainer.open_many([(plan, None) for plan in plans]) as joint:
        found = drive(joint)
        assert joint.together == 1
    for one, other in zip(found, joint_outcomes, strict=True):
        assert_alike(one, other)


def test_the_base_is_the_same_afterwards_and_the_trainer_free(
    trainer: DiffusionTrainer, base: BaseModel, plans: list[TrainingPlan]
) -> None:
    before = {name: weight.clone() for name, weight in base.unet.state_dict().items()}
    with trainer.open_many([(plan, None) for plan in plans]) as joint:
        joint.advance()
        with pytest.raises(RuntimeError, match="one session"):
            trainer.open(plans[0], None).__enter__()
    after = base.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any("forward" in module.__dict__ for module in base.unet.modules())
    assert run(trainer, plans[0], steps=1).weights


def test_only_runs_with_adapters_alike_train_together(
    trainer: DiffusionTrainer, pictures: Pictures
) -> None:
    first = plan_of(pictures[:1])
    unlike = [{"rank": 2}, {"alpha": 1.0}, {"use_dora": True}, {"lora_targets": "attention+ff"}]
    for other in unlike:
        jobs = [(first, None), (plan_of(pictures[:1], **other), None)]
        with pytest.raises(ValueError, match="cannot train together"):
            trainer.open_many(jobs).__enter__()
    for alone in ({"lora_dropout": 0.1}, {"optimizer": "prodigy"}, {"use_dora": True}):
        assert likeness(plan_of(pictures[:1], **alone).parameters) is None
