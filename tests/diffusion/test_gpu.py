"""The default execution on a real GPU: equal to eager, captured, small, and able to fall back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapters.diffusion.base.model import BaseModel, load_base
from adapters.diffusion.cuda_graphs import CudaRecorder
from adapters.diffusion.execution import ExecutionOptions, choose_execution
from adapters.diffusion.oom import MemoryPlan
from adapters.diffusion.session import DiffusionSession
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from benchmarks.full_size import full_size_base
from domain.image import TrainingImage
from domain.loss_curve import EpochRecord
from tests.diffusion.conftest import SMALL_BASE
from tests.diffusion.recipe import recipe
from tests.diffusion.runs import (
    EVERY_OPTION,
    Outcome,
    drive,
    plan_of,
    run,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="waits for a CUDA device"),
]

Images = tuple[TrainingImage, ...]
CUDA = "cuda"
GIB = 2**30
OF_THE_DRIVER = 0.5
"""GiB of a GPU that tensors cannot use: CUDA context and kernel code."""
PLAIN = ExecutionOptions()
CAPTURED = ExecutionOptions(make_recorder=CudaRecorder)


def trainer_with(execution: ExecutionOptions, base: BaseModel | None = None) -> DiffusionTrainer:
    base = base or load_base(str(SMALL_BASE))
    return DiffusionTrainer(base, decode, CUDA, execution=execution)


@pytest.fixture(scope="module")
def full_size() -> Iterator[BaseModel]:
    base = full_size_base(CUDA, choose_execution(CUDA).dtype)
    for part in (base.vae, base.text_encoder):
        part.to("cpu")
    yield base
    base.unet.to("meta")
    torch.cuda.empty_cache()


def recorded(session: Any) -> int | None:
    """The captured graphs of the session's steps."""
    size: int | None = session.model.graphs.size
    return size


def assert_alike(
    found: list[EpochRecord] | Any, wanted: list[EpochRecord] | Any, within: float
) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=within)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=3 * within)


def test_captured_steps_follow_eager_ones_over_shapes_schedules_and_batches(
    images: Images,
) -> None:
    plan = plan_of(images, **EVERY_OPTION, epochs=6, batch_size=3, lr_warmup_steps=3)
    plain = run(trainer_with(PLAIN), plan)
    with trainer_with(CAPTURED).open(plan, None) as session:
        drive(session)
        assert recorded(session) == 3
        assert_alike(session.history, plain.history, within=0.01)


def test_captured_measurements_follow_eager_ones(images: Images) -> None:
    plan = plan_of(images, epochs=6, validation_epochs=1, validation_split=0.2)
    with trainer_with(choose_execution(CUDA)).open(plan, None) as session:
        drive(session)
        assert isinstance(session, DiffusionSession)
        assert session.model.evaluation_graphs.size
        found = session.history
    for one, other in zip(found, run(trainer_with(PLAIN), plan).history, strict=True):
        assert one.evaluation_loss == pytest.approx(other.evaluation_loss, rel=0.05)
        assert one.validation_loss == pytest.approx(other.validation_loss, rel=0.05)
    assert len({record.evaluation_loss for record in found}) == len(found)


def test_captured_measurements_take_no_memory_from_steps_on_small_gpus(
    full_size: BaseModel, images: Images
) -> None:
    plan = plan_of(images[:2], resolution=512, rank=8, epochs=6, validation_epochs=1)
    with (
        gpu_memory_limit(4),
        trainer_with(choose_execution(CUDA), full_size).open(plan, None) as session,
    ):
        drive(session)
        assert isinstance(session, DiffusionSession)
        assert session.memory == MemoryPlan(1)
        assert recorded(session)


def test_the_default_backend_learns_like_the_reference(images: Images) -> None:
    plan = plan_of(images, epochs=8, batch_size=2, learning_rate=3e-3, validation_epochs=1)
    base = load_base(str(SMALL_BASE))
    base.unet.to(CUDA)
    curve, _ = recipe(base, plan)
    fast = run(trainer_with(choose_execution(CUDA)), plan).history
    assert [record.loss for record in fast] == pytest.approx(curve, rel=0.02)
    first, last = fast[0].evaluation_loss, fast[-1].evaluation_loss
    assert first is not None
    assert last is not None
    assert last < first


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "layout", [{}, {"channels_last": True}, {"channels_last": True, "fused": True}]
)
def test_every_precision_and_layout_follows_eager_float32(
    images: Images, compute: torch.dtype, layout: dict[str, Any]
) -> None:
    plan = plan_of(images, epochs=4, batch_size=2, learning_rate=2e-3)
    execution = replace(CAPTURED, dtype=compute, **layout)
    fast = run(trainer_with(execution), plan)
    assert_alike(fast.history, run(trainer_with(PLAIN), plan).history, within=0.05)


def test_a_resumed_run_ends_like_an_uninterrupted_one(images: Images) -> None:
    plan = plan_of(images, epochs=6, batch_size=2, learning_rate=2e-3)
    trainer = trainer_with(choose_execution(CUDA))
    uninterrupted = run(trainer, plan)
    first = run(trainer, plan, steps=7)
    assert_alike(
        run(trainer, plan, resume=first.checkpoint).history, uninterrupted.history, within=0.05
    )


@pytest.mark.parametrize("styles", [2, 4])
def test_several_styles_at_once_follow_each_alone(
    images: Images, styles: int, caplog: pytest.LogCaptureFixture
) -> None:
    execution = choose_execution(CUDA)
    alone = trainer_with(execution)
    base = load_base(str(SMALL_BASE))
    shared = DiffusionTrainer(base, decode, CUDA, slots=styles, max_wait=60.0)
    plans = [
        plan_of(images[:3], epochs=5, seed=1, learning_rate=2e-3),
        plan_of(images[2:], epochs=4, seed=2, learning_rate=1e-3, **EVERY_OPTION),
        plan_of(images[1:4], epochs=5, seed=3, learning_rate=2e-3),
        plan_of(images[:3], epochs=6, seed=4, learning_rate=1e-3),
    ][:styles]
    with ExitStack() as stack:
        sessions = [stack.enter_context(shared.open(plan, None)) for plan in plans]
        with ThreadPoolExecutor(styles) as pool:
            list(pool.map(drive, sessions))
        # Whichever thread leads: what a recording takes is there.
        assert "CUDA graphs of" not in caplog.text
        assert recorded(sessions[0])
        for session, plan in zip(sessions, plans, strict=True):
            assert_alike(session.history, run(alone, plan).history, within=0.05)


@pytest.mark.parametrize("styles", [1, 2])
def test_no_device_synchronisation_within_an_epoch(images: Images, styles: int) -> None:
    base = load_base(str(SMALL_BASE))
    trainer = DiffusionTrainer(base, decode, CUDA, slots=styles, max_wait=60.0)
    plans = [plan_of(images, epochs=8, batch_size=1, seed=seed) for seed in range(styles)]
    with ExitStack() as stack, ThreadPoolExecutor(styles) as pool:
        sessions = [stack.enter_context(trainer.open(plan, None)) for plan in plans]
        list(pool.map(lambda session: [session.advance() for _ in range(5 * 5)], sessions))
        torch.cuda.set_sync_debug_mode("error")
        try:
            list(pool.map(lambda session: [session.advance() for _ in range(4)], sessions))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("what", ["capture_begin", "capture_end"])
@pytest.mark.parametrize("slots", [1, 2])
def test_a_run_continues_eagerly_where_capture_fails(
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
    slots: int,
) -> None:
    end = torch.cuda.CUDAGraph.capture_end

    def reject(graph: torch.cuda.CUDAGraph, *_: object, **__: object) -> None:
        if what == "capture_end":
            end(graph)
        raise RuntimeError("operation not permitted when stream is capturing")

    plan = plan_of(images[:3], epochs=6)
    wanted = run(trainer_with(CAPTURED), plan)
    monkeypatch.setattr(torch.cuda.CUDAGraph, what, reject)
    base = load_base(str(SMALL_BASE))
    trainer = DiffusionTrainer(base, decode, CUDA, execution=CAPTURED, slots=slots)
    before = torch.cuda.current_stream()
    with trainer.open(plan, None) as session:
        drive(session)
        assert torch.cuda.current_stream() == before
        assert isinstance(session, DiffusionSession)
        assert session.thread.call(torch.cuda.current_stream) == before
        assert_alike(session.history, wanted.history, within=0.01)
    assert "CUDA graphs of" in caplog.text


def test_a_job_frees_its_memory_and_keeps_the_base_bit_for_bit(images: Images) -> None:
    base = load_base(str(SMALL_BASE))
    trainer = trainer_with(choose_execution(CUDA), base)
    parts = ("unet", "vae", "text_encoder")
    before = {part: copy.deepcopy(getattr(base, part).state_dict()) for part in parts}
    run(trainer, plan_of(images, epochs=4))
    for part in parts:
        after = getattr(base, part).state_dict()
        assert all(torch.equal(after[name], before[part][name]) for name in after)
    held = torch.cuda.memory_allocated()
    for _ in range(2):
        run(trainer, plan_of(images, epochs=4))
    assert torch.cuda.memory_allocated() <= held + 2**20


@contextmanager
def gpu_memory_limit(gib: float) -> Iterator[None]:
    """In the with-block, limit GPU memory to that of a GPU of this size."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction((gib - OF_THE_DRIVER) * GIB / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize(("batch", "gpu_gib"), [(1, 4), (4, 8)])
def test_full_size_steps_fit_small_gpus(
    full_size: BaseModel, images: Images, batch: int, gpu_gib: int
) -> None:
    plan = plan_of(images[:4], resolution=512, rank=8, batch_size=batch, epochs=8)
    with gpu_memory_limit(gpu_gib):
        trainer = trainer_with(choose_execution(CUDA), full_size)
        with trainer.open(plan, None) as session:
            for _ in range(6):
                session.advance()
            assert session.peak_memory > 1 * GIB
            assert isinstance(session, DiffusionSession)
            assert session.memory == MemoryPlan(batch)
            assert recorded(session)


def test_a_gpu_with_less_memory_gets_smaller_batches(
    full_size: BaseModel, images: Images, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(images[:4], resolution=512, rank=8, batch_size=4, epochs=5)
    trainer = trainer_with(choose_execution(CUDA), full_size)
    full = losses_of(trainer, plan)
    with gpu_memory_limit(4.5):
        found = losses_of(trainer, plan)
    assert "out of memory, continuing with" in caplog.text
    assert found == pytest.approx(full, rel=0.05)


def losses_of(trainer: DiffusionTrainer, plan: Any) -> list[float]:
    outcome: Outcome = run(trainer, plan)
    return [record.loss for record in outcome.history]
