"""CUDA graphs and half precision train like eager float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.cuda_graphs import WARM_UP, GraphCache
from adapters.diffusion.execution import CPU, ExecutionOptions, choose_execution, describe
from adapters.diffusion.session import DiffusionSession
from adapters.diffusion.train_step import Batch
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from domain.image import TrainingImage
from tests.diffusion.fake_cuda_graph import FakeGraphRecorder
from tests.diffusion.runs import EVERY_OPTION, drive, plan_of, run, weights_of

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]


def recorded(base: BaseModel, recorder: FakeGraphRecorder) -> DiffusionTrainer:
    return DiffusionTrainer(
        *(base, decode),
        execution=ExecutionOptions(merged_lora=True, make_recorder=lambda _: recorder),
        preview_steps=2,
    )


def graphs_of(trainer: DiffusionTrainer) -> int | None:
    """The captured graphs of the open runs' steps."""
    return trainer.model.graphs.size if trainer.model else None


def test_captured_steps_equal_eager_ones_bit_for_bit_also_after_a_resume(
    trainer: DiffusionTrainer, base: BaseModel, images: Images
) -> None:
    """Three shapes: three squares as a pair or alone, and an image in its own bucket."""
    recorder = FakeGraphRecorder()
    plan = plan_of(images[1:], **EVERY_OPTION, lr_warmup_steps=3, epochs=4, batch_size=2)
    fast, wanted = recorded(base, recorder), run(trainer, plan)
    assert run(fast, plan) == wanted
    assert recorder.recorded == 3
    assert recorder.replayed == 3 * (4 - WARM_UP)
    first = run(fast, plan, steps=4)
    assert run(fast, plan, resume=first.checkpoint) == wanted


def test_the_next_run_captures_its_own_graphs(
    trainer: DiffusionTrainer, base: BaseModel, images: Images
) -> None:
    fast = recorded(base, FakeGraphRecorder())
    for plan in (plan_of(images[:1], epochs=3), plan_of(images[:1], epochs=3, rank=2)):
        with fast.open(plan, None) as session:
            assert graphs_of(fast) == 0
            drive(session)
            assert graphs_of(fast) == 1
            weights = session.weights()
        assert weights == run(trainer, plan).weights


def test_a_rollback_reaches_the_captured_step(
    trainer: DiffusionTrainer, base: BaseModel, images: Images
) -> None:
    def disturbed(trainer: DiffusionTrainer) -> bytes:
        with trainer.open(plan_of(images[:2], epochs=5), None) as session:
            for _ in range(7):
                session.advance()
            weights_of(session)[3] = float("nan")
            while not session.finished:
                session.advance()
            assert session.history[-1].learning_rate < session.history[-3].learning_rate / 2
            return session.weights()

    fast = recorded(base, FakeGraphRecorder())
    assert disturbed(fast) == disturbed(trainer)


class Rejecting(FakeGraphRecorder):
    """A device on which capture fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Fail as torch does: ending the failed capture raises a second error."""
        self.recorded += 1
        try:
            raise self._error
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("not permitted\nCompile with TORCH_USE_..."), "RuntimeError: not permitted"),
        (torch.OutOfMemoryError(), "OutOfMemoryError: out of memory"),
    ],
)
def test_steps_run_eagerly_if_capture_fails(
    trainer: DiffusionTrainer,
    base: BaseModel,
    images: Images,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    expected: str,
) -> None:
    rejecting = Rejecting(error)
    plan = plan_of(images[:2], epochs=4)
    fast = recorded(base, rejecting)
    assert run(fast, plan) == run(trainer, plan)
    assert rejecting.recorded == 1
    assert [line for line in caplog.messages if "disabled" in line] == [
        f"CUDA graphs of steps are disabled: {expected}"
    ]


def batch_of(channels: int) -> Batch:
    """A batch of a unique shape."""
    image, one = torch.zeros(1, channels, 1, 1), torch.zeros(1)
    return Batch(image, one, image, image, one, one, one, one)


def test_the_least_recently_used_graph_is_evicted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("adapters.diffusion.cuda_graphs.MAX_GRAPHS", 2)
    recorder = FakeGraphRecorder()
    graphs = GraphCache(recorder, "steps")

    def recorded_for(shapes: str) -> int:
        before = recorder.recorded
        for shape in shapes:
            graphs.run(batch_of(ord(shape)), lambda _: None)
        return recorder.recorded - before

    assert recorded_for("AAABBB") == 2
    assert recorded_for("A") == recorder.waited == 0
    assert recorded_for("CCC") == recorder.waited == 1  # the device is done before the drop
    assert recorded_for("ACA") == 0
    assert recorded_for("BB") == 0  # a shape that returns warms up again
    assert recorded_for("B") == 1
    assert graphs.size == 2


@pytest.mark.parametrize("what", ["previews", "measurement"])
def test_graphs_are_dropped_when_memory_runs_out(
    base: BaseModel, images: Images, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    class OfSteps(FakeGraphRecorder):
        """Capture steps only: a captured measurement would need no more memory."""

        def record(self, function: Callable[[], None]) -> Callable[[], None]:
            if not torch.is_grad_enabled():
                raise RuntimeError("operation not permitted when stream is capturing")
            return super().record(function)

    plan = plan_of(images[:1], epochs=5, validation_epochs=5)
    fast = recorded(base, OfSteps())
    wanted = run(fast, plan)
    forward, rejected = base.unet.forward, []

    def limited(*arguments: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled() and graphs_of(fast):
            rejected.append(arguments)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*arguments, **keywords)

    monkeypatch.setattr(base.unet, "forward", limited)
    with fast.open(plan, None) as session:
        if what == "previews":
            for _ in range(4):
                session.advance()
            assert graphs_of(fast) == 1
            assert session.previews(with_lora=True)
            assert graphs_of(fast) == 0
        drive(session)
        assert rejected
        assert session.history == wanted.history


def test_oom_in_a_replay_leads_to_smaller_batches_and_new_graphs(
    trainer: DiffusionTrainer, base: BaseModel, images: Images
) -> None:
    class Filling(FakeGraphRecorder):
        def record(self, function: Callable[[], None]) -> Callable[[], None]:
            replay = super().record(function)

            def once_full() -> None:
                if self.recorded == 1:
                    raise torch.OutOfMemoryError
                replay()

            return once_full

    recorder = Filling()
    plan = plan_of(images[:4], batch_size=4, epochs=6)
    fast = recorded(base, recorder)
    outcome = run(fast, plan)
    assert recorder.recorded == 2
    assert recorder.replayed == 6 - WARM_UP - WARM_UP
    plain = run(trainer, plan)
    assert [record.loss for record in outcome.history] == pytest.approx(
        [record.loss for record in plain.history], rel=1e-3
    )


@pytest.mark.parametrize(
    ("compute", "channels_last"), [(torch.bfloat16, True), (torch.float16, False)]
)
def test_half_precision_follows_the_eager_loss_and_keeps_the_base_bit_for_bit(
    trainer: DiffusionTrainer,
    base: BaseModel,
    images: Images,
    compute: torch.dtype,
    channels_last: bool,
) -> None:
    plan = plan_of(images[:3], epochs=2, batch_size=2, learning_rate=2e-3)
    plain = run(trainer, plan)
    own = replace(base, unet=copy.deepcopy(base.unet))
    half = DiffusionTrainer(
        own,
        decode,
        execution=ExecutionOptions(dtype=compute, channels_last=channels_last),
    )
    before = copy.deepcopy(own.unet.state_dict())
    outcome = run(half, plan)
    for one, other in zip(plain.history, outcome.history, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=0.03)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=0.1)
    after = own.unet.state_dict()
    assert {weight.dtype for weight in after.values()} == {compute}
    assert all(torch.equal(after[name], before[name]) for name in before)
    resumed = run(half, plan, resume=run(half, plan, steps=2).checkpoint)
    assert resumed == outcome


def test_a_float16_overflow_skips_the_step_and_lowers_the_scale(
    base: BaseModel, images: Images
) -> None:
    own = replace(base, unet=copy.deepcopy(base.unet))
    half = DiffusionTrainer(own, decode, execution=ExecutionOptions(dtype=torch.float16))
    with half.open(plan_of(images[:1], epochs=4, lr_warmup_steps=0), None) as session:
        assert isinstance(session, DiffusionSession)
        scaler = session.scaler
        scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**120})
        before = weights_of(session).clone()
        session.advance()
        assert torch.equal(weights_of(session), before)
        assert scaler.get_scale() == 2.0**119
        assert session.history[0].stalled


def test_a_step_that_fails_in_its_update_can_be_repeated(
    base: BaseModel, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run resumes from a float32 checkpoint, as one from another GPU."""
    plan = plan_of(images[:1], epochs=3)
    checkpoint = run(DiffusionTrainer(base, decode), plan, steps=1).checkpoint
    own = replace(base, unet=copy.deepcopy(base.unet))
    half = DiffusionTrainer(own, decode, execution=ExecutionOptions(dtype=torch.float16))
    wanted = run(half, plan, resume=checkpoint).history
    clip, full = torch.nn.utils.clip_grad_norm_, [True]

    def full_once(*arguments: Any) -> torch.Tensor:
        if full:
            full.clear()
            raise torch.OutOfMemoryError
        return clip(*arguments)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", full_once)
    for one, other in zip(run(half, plan, resume=checkpoint).history, wanted, strict=True):
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)


def test_a_cpu_computes_in_float32_and_a_gpu_in_its_best_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert choose_execution("cpu") == CPU
    assert CPU.dtype == torch.float32
    found = {}
    for capability in [(6, 1), (7, 5), (8, 0), (9, 0)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        chosen = choose_execution("cuda")
        found[capability] = (
            chosen.dtype,
            chosen.make_recorder is not None,
            "loss scaling" in describe(chosen),
        )
    assert found == {
        (6, 1): (torch.float16, False, True),
        (7, 5): (torch.float16, True, True),
        (8, 0): (torch.bfloat16, True, False),
        (9, 0): (torch.bfloat16, True, False),
    }
    assert describe(CPU) == "float32, eager steps"
