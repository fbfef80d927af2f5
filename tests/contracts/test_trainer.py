"""The contract of every trainer. For a new adapter add a parameter to ``harness``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from adapters.memory import ManualClock, MemoryInspector, MemoryTrainer
from application.ports import CheckpointRejected, Trainer, TrainingSession
from application.stop_signal import StopSignal
from domain.image import TrainingImage
from domain.loss_curve import EpochRecord
from domain.parameters import TrainingParameters
from domain.progress import StepReport
from domain.results import Checkpoint
from domain.training_plan import TrainingPlan

EPOCHS = 3


@dataclass(frozen=True)
class Harness:
    """A trainer with images that it can train on: three, all of one shape."""

    trainer: Trainer
    images: tuple[TrainingImage, ...]
    with_slots: Callable[[int], Trainer]
    """Makes a trainer of the same kind with that many slots."""
    resolution: int = 64

    def plan(self, **parameters: Any) -> TrainingPlan:
        """Three images in batches of two: two steps per epoch, the second with one image. The
        loss is not measured by default, as a measurement takes as long as eight steps."""
        values = {
            **{"epochs": EPOCHS, "resolution": self.resolution, "batch_size": 2, "rank": 2},
            **{"learning_rate": 1e-3, "lr_warmup_steps": 0, "sample_prompts": ("a sun",)},
            "validation_epochs": 0,
            **parameters,
        }
        return TrainingPlan(
            style_id=7,
            images=self.images,
            tags=("ink",),
            parameters=TrainingParameters(**values),
        )


@pytest.fixture(scope="module")
def memory() -> Harness:
    inspector = MemoryInspector()
    files = {f"{name}.png": f"image {name}".encode() for name in "abc"}
    images = tuple(
        TrainingImage(name, data, inspector.inspect(data, 512, StopSignal()).facts)
        for name, data in files.items()
    )
    return Harness(
        MemoryTrainer(ManualClock()),
        images,
        lambda slots: MemoryTrainer(ManualClock(), slots=slots),
    )


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    from adapters.diffusion.base.model import load_base
    from adapters.diffusion.trainer import DiffusionTrainer
    from adapters.images.decode import decode
    from adapters.images.opening import open_image
    from adapters.images.prepare import prepare
    from assets.drawing import draw_style_set

    files = draw_style_set(tmp_path_factory.mktemp("images"), count=3, seed=1)
    images = tuple(
        TrainingImage(
            file.name, file.read_bytes(), prepare(open_image(file.read_bytes()), 512).facts
        )
        for file in files
    )
    small_base = Path(__file__).resolve().parents[2] / "assets" / "small_base"
    base = load_base(str(small_base))
    return Harness(
        DiffusionTrainer(base, decode, preview_steps=4),
        images,
        lambda slots: DiffusionTrainer(base, decode, slots=slots, preview_steps=4),
    )


@pytest.fixture(
    scope="module",
    params=["memory", pytest.param("diffusion", marks=pytest.mark.integration)],
)
def harness(request: pytest.FixtureRequest) -> Harness:
    chosen: Harness = request.getfixturevalue(request.param)
    return chosen


@dataclass(frozen=True)
class Outcome:
    """All observable results of a run."""

    reports: Sequence[StepReport]
    history: Sequence[EpochRecord]
    weights: bytes


@pytest.fixture(scope="module")
def uninterrupted(harness: Harness) -> Outcome:
    """The results of the default plan."""
    return run(harness, harness.plan())


def drive(session: TrainingSession) -> list[StepReport]:
    reports = []
    while not session.finished:
        reports.append(session.advance())
    return reports


def run(harness: Harness, plan: TrainingPlan, resume: bytes | None = None) -> Outcome:
    with harness.trainer.open(plan, resume) as session:
        return Outcome(drive(session), list(session.history), session.weights())


def checkpoint_after(harness: Harness, plan: TrainingPlan, steps: int) -> Checkpoint:
    with harness.trainer.open(plan, None) as session:
        for _ in range(steps):
            session.advance()
        return session.checkpoint()


def test_the_base_has_a_name(harness: Harness) -> None:
    assert harness.trainer.base.name


def test_the_native_resolution_is_a_valid_one(harness: Harness) -> None:
    TrainingParameters(epochs=1, resolution=harness.trainer.native_resolution)


def test_a_run_counts_steps_and_epochs_and_ends(harness: Harness) -> None:
    with harness.trainer.open(harness.plan(), None) as session:
        assert not session.finished
        assert list(session.history) == []
        total = session.total_steps
        reports = drive(session)
        assert session.total_steps == total
    per_epoch = total // EPOCHS
    assert [report.step for report in reports] == list(range(1, total + 1))
    assert [report.epoch for report in reports] == [
        step // per_epoch for step in range(1, total + 1)
    ]
    assert [report.step for report in reports if report.epoch_finished] == [
        epoch * per_epoch for epoch in range(1, EPOCHS + 1)
    ]


def test_the_history_has_each_finished_epoch_with_its_loss(harness: Harness) -> None:
    with harness.trainer.open(harness.plan(), None) as session:
        for epoch in range(1, EPOCHS + 1):
            while not session.advance().epoch_finished:
                assert len(session.history) == epoch - 1
            newest = session.history[-1]
            assert len(session.history) == epoch
            assert newest.epoch == epoch
            assert math.isfinite(newest.loss)
            assert newest.learning_rate >= 0


def test_peak_memory_never_falls(harness: Harness) -> None:
    with harness.trainer.open(harness.plan(), None) as session:
        before = session.peak_memory
        drive(session)
        assert session.peak_memory >= before > 0


def test_training_changes_the_weights(harness: Harness) -> None:
    with harness.trainer.open(harness.plan(), None) as session:
        untrained = session.weights()
        session.advance()
        assert session.weights() != untrained


def test_equal_plans_give_equal_runs_and_another_seed_differs(
    harness: Harness, uninterrupted: Outcome
) -> None:
    assert run(harness, harness.plan()) == uninterrupted
    assert run(harness, harness.plan(seed=1)).weights != uninterrupted.weights


@pytest.mark.parametrize("steps", [0, 2, 3, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(
    harness: Harness, uninterrupted: Outcome, steps: int
) -> None:
    taken = checkpoint_after(harness, harness.plan(), steps)
    assert (taken.epoch, taken.step) == (steps // 2, steps)
    rest = run(harness, harness.plan(), taken.data)
    assert list(rest.reports) == list(uninterrupted.reports)[steps:]
    assert rest.history == uninterrupted.history
    assert rest.weights == uninterrupted.weights


def test_a_resumed_session_starts_at_its_checkpoint(harness: Harness) -> None:
    with harness.trainer.open(harness.plan(), None) as session:
        for _ in range(3):
            session.advance()
        taken, history, weights = session.checkpoint(), list(session.history), session.weights()
    with harness.trainer.open(harness.plan(), taken.data) as session:
        assert list(session.history) == history
        assert session.weights() == weights
        assert session.checkpoint() == taken


def test_observing_a_run_does_not_change_it(harness: Harness, uninterrupted: Outcome) -> None:
    with harness.trainer.open(harness.plan(), None) as session:
        while not session.finished:
            session.advance()
            session.checkpoint()
            session.weights()
            session.previews(with_lora=True)
            session.previews(with_lora=False)
        assert session.weights() == uninterrupted.weights
        assert list(session.history) == list(uninterrupted.history)


def test_a_finished_run_goes_back_to_the_weights_of_a_checkpoint(harness: Harness) -> None:
    with harness.trainer.open(harness.plan(), None) as session:
        while not session.advance().epoch_finished:
            pass
        taken, weights, drawn = session.checkpoint(), session.weights(), session.previews
        early = drawn(with_lora=True)
        drive(session)
        history = list(session.history)
        with pytest.raises(CheckpointRejected):
            session.restore(b"damaged")
        session.restore(taken.data)
        assert session.finished
        assert session.weights() == weights
        assert session.previews(with_lora=True) == early
        assert list(session.history) == history


def test_the_base_is_measured_before_the_first_step_if_at_all(harness: Harness) -> None:
    with harness.trainer.open(harness.plan(), None) as session:
        assert session.baseline is None
    plan = harness.plan(validation_epochs=1)
    with harness.trainer.open(plan, None) as session:
        before = session.baseline
        taken = session.checkpoint()
    with harness.trainer.open(plan, taken.data) as session:
        assert session.baseline == before
    if before is not None:
        assert (before.epoch, before.loss) == (0, before.measured_loss)


def test_previews_show_the_prompts_before_and_after_from_the_same_seeds(harness: Harness) -> None:
    prompts = ("a red circle", "a blue square")
    with harness.trainer.open(harness.plan(sample_prompts=prompts), None) as session:
        before = session.previews(with_lora=False)
        drive(session)
        assert session.previews(with_lora=False) == before
        after = session.previews(with_lora=True)
    assert tuple(preview.prompt for preview in before) == prompts
    assert [(p.prompt, p.seed) for p in after] == [(p.prompt, p.seed) for p in before]
    assert all(preview.png.startswith(b"\x89PNG\r\n\x1a\n") for preview in (*before, *after))
    assert [p.png for p in after] != [p.png for p in before]


def test_a_run_without_prompts_has_previews(harness: Harness) -> None:
    with harness.trainer.open(harness.plan(), None) as session:
        assert session.previews(with_lora=True)


def test_an_unusable_checkpoint_is_rejected_and_the_trainer_stays_usable(harness: Harness) -> None:
    data = checkpoint_after(harness, harness.plan(), 1).data
    of_another_run = checkpoint_after(harness, harness.plan(seed=1), 1).data
    for unusable in (b"", data[: len(data) // 2], b"not a checkpoint at all", of_another_run):
        with (
            pytest.raises(CheckpointRejected, match=r"\w"),
            harness.trainer.open(harness.plan(), unusable),
        ):
            pass
    assert run(harness, harness.plan()).reports


def test_a_failing_session_leaves_the_trainer_usable(
    harness: Harness, uninterrupted: Outcome
) -> None:
    def break_off() -> None:
        with harness.trainer.open(harness.plan(), None) as session:
            session.advance()
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert run(harness, harness.plan()) == uninterrupted


def test_with_one_slot_every_run_is_alone(harness: Harness) -> None:
    trainer, plan = harness.trainer, harness.plan()
    assert trainer.batch_key(plan.parameters) is None
    with trainer.open(plan, None) as session:
        with pytest.raises(RuntimeError), trainer.open(harness.plan(seed=1), None):
            pass
        assert drive(session)


def test_runs_of_one_batch_key_train_concurrently_and_end_as_alone(
    harness: Harness,
) -> None:
    plans = [harness.plan(seed=seed, epochs=epochs) for seed, epochs in ((1, 3), (2, 2), (3, 3))]
    alone = [run(harness, plan) for plan in plans]
    shared = replace(harness, trainer=harness.with_slots(3))
    assert len({shared.trainer.batch_key(plan.parameters) for plan in plans}) == 1
    assert shared.trainer.batch_key(plans[0].parameters) is not None
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda plan: run(shared, plan), plans))
    for found, wanted in zip(together, alone, strict=True):
        assert [report.step for report in found.reports] == [
            report.step for report in wanted.reports
        ]
        assert [record.loss for record in found.history] == pytest.approx(
            [record.loss for record in wanted.history], rel=1e-3
        )
    assert len({found.weights for found in together}) == 3


def test_a_run_joins_running_ones_and_resumes_alone_from_a_checkpoint(
    harness: Harness,
) -> None:
    plan = harness.plan(seed=5)
    uninterrupted = run(harness, plan)
    shared = replace(harness, trainer=harness.with_slots(2))
    with shared.trainer.open(harness.plan(seed=6), None) as other:
        other.advance()
        with shared.trainer.open(plan, None) as session:
            session.advance()
            session.advance()
            taken = session.checkpoint()
        other.advance()
    rest = run(harness, plan, taken.data)
    assert rest.history[-1].loss == pytest.approx(uninterrupted.history[-1].loss, rel=1e-3)


def test_more_runs_than_slots_or_of_another_batch_key_are_rejected(harness: Harness) -> None:
    trainer = harness.with_slots(2)
    with trainer.open(harness.plan(seed=1), None):
        with (
            pytest.raises(RuntimeError, match=r"cannot (join|train together)"),
            trainer.open(harness.plan(rank=4), None),
        ):
            pass
        with (
            trainer.open(harness.plan(seed=2), None),
            pytest.raises(RuntimeError, match="slots"),
            trainer.open(harness.plan(seed=3), None),
        ):
            pass
