"""Shared parts of the GPU benchmarks: base model, images, trainer, and measurement of a row."""

from __future__ import annotations

import argparse
import contextlib
import gc
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from adapters.diffusion.base.model import BaseModel, load_base
from adapters.diffusion.execution import ExecutionOptions, choose_execution
from adapters.diffusion.session import DiffusionSession, advance_runs
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from application.ports import TrainingSession
from benchmarks import SMALL_BASE
from benchmarks.full_size import RESOLUTION, full_size_base
from benchmarks.gpu.facts import gib, wait_for
from benchmarks.images import drawn_images
from domain.image import TrainingImage
from domain.parameters import TrainingParameters
from domain.training_plan import TrainingPlan

T = TypeVar("T")

WARM_UP = 8
"""Steps before the measurement, in which kernels are chosen and each shape is recorded."""
RANK = 8
MAX_WAIT = 1.0
"""Seconds that a step waits for the other runs: longer than any step or end of an epoch."""


class Rerun:
    """Recorder for devices without CUDA graphs, so that the same code runs there."""

    def __init__(self, device: torch.device) -> None:
        """Take the place of ``CudaRecorder``."""

    warming_up = contextlib.nullcontext

    def synchronize(self) -> None:
        """Do nothing."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Return the function itself."""
        return function


@dataclass(frozen=True)
class Bench:
    """Base model, images and settings of all rows."""

    device: torch.device
    base: BaseModel
    images: tuple[TrainingImage, ...]
    """Square images only."""
    resolution: int
    seconds: float
    """Duration of each row's measurement."""

    def trainer(self, execution: ExecutionOptions, slots: int = 1) -> DiffusionTrainer:
        """A trainer. With several slots its runs wait for one another: a pass without a late run
        would have a shape that is not recorded yet, and would be recorded while measuring."""
        if execution.make_recorder is not None and self.device.type != "cuda":
            execution = replace(execution, make_recorder=Rerun)
        return DiffusionTrainer(
            self.base,
            decode,
            self.device,
            execution=execution,
            slots=slots,
            max_wait=MAX_WAIT,
        )

    def plan(self, batch: int, epochs: int = 10_000, seed: int = 0) -> TrainingPlan:
        parameters = TrainingParameters(
            epochs=epochs,
            resolution=self.resolution,
            rank=RANK,
            batch_size=batch,
            seed=seed,
            validation_epochs=0,
        )
        return TrainingPlan(style_id=1, images=self.images, tags=(), parameters=parameters)


def prepare(options: argparse.Namespace, device: torch.device, folder: Path) -> Bench:
    """Load the base model in the GPU's precision, and draw square images."""
    compute = choose_execution(device).dtype if device.type == "cuda" else torch.bfloat16
    base = load_base(str(SMALL_BASE)) if options.tiny else full_size_base(device, compute)
    torch.nn.Module.to(base.unet, device=device, dtype=compute)
    encoders_at_home(base)
    drawn = drawn_images(folder / "speed", 20)
    squares = tuple(p for p in drawn if p.facts.width == p.facts.height)
    resolution = 64 if options.tiny else RESOLUTION
    return Bench(device, base, squares, resolution, options.seconds)


def attempts(run: Callable[[], dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """Yield one row, measured or with its error; free its memory in both cases."""
    try:
        yield {"name": name, **run()}
    except Exception as error:  # a row that fails must not cost the others
        traceback.print_exc()
        yield {"name": name, "error": f"{type(error).__name__}: {str(error)[:300]}"}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(bench: Bench, batch: int, step: Callable[[], object]) -> dict[str, Any]:
    """A row's figures from repeated calls of ``step``."""
    started = time.perf_counter()
    for _ in range(WARM_UP):
        step()
    wait_for(bench.device)
    warm = time.perf_counter() - started
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < bench.seconds:
        for _ in range(4):
            step()
        wait_for(bench.device)
        steps += 4
    per_step = (time.perf_counter() - started) / steps
    return {
        **pace(bench, batch, per_step),
        "warm_up_s": round(warm, 2),
        "recording_s": round(max(0.0, warm - WARM_UP * per_step), 2),
    }


def pace(bench: Bench, batch: int, per_step: float) -> dict[str, Any]:
    """A row's speeds from the seconds per step, and the peak memory so far."""
    row = {
        "steps_per_s": round(1 / per_step, 2),
        "images_per_s": round(batch / per_step, 2),
        "ms_per_step": round(1e3 * per_step, 2),
    }
    if bench.device.type == "cuda":
        row["peak_gib"] = gib(torch.cuda.max_memory_allocated(bench.device))
        row["reserved_gib"] = gib(torch.cuda.max_memory_reserved(bench.device))
    return row


def recorded(session: TrainingSession) -> bool:
    """Whether the run's steps are recorded; after a failed recording they are not."""
    assert isinstance(session, DiffusionSession)
    return session.model.graphs.size is not None


def watching_a_step(session: TrainingSession, watch: Callable[[Callable[[], None]], T]) -> T:
    """Call ``watch`` with a function that trains the next step, in the thread that uses the
    device: torch's counters record the calls of their own thread only."""
    assert isinstance(session, DiffusionSession)

    def step() -> None:
        outcome = advance_runs([session])[session]
        if isinstance(outcome, Exception):
            raise outcome

    return session.thread.call(lambda: watch(step))


def encoders_at_home(base: BaseModel) -> None:
    """Move the VAE and the text encoder to the CPU, where the trainer keeps them when unused."""
    for part in (base.vae, base.text_encoder):
        torch.nn.Module.to(part, device="cpu", dtype=torch.float32)
