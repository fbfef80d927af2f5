"""Speed of the recipe and of each optimization, at several batch sizes."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from adapters.diffusion.cuda_graphs import CudaRecorder
from adapters.diffusion.execution import ExecutionOptions
from adapters.diffusion.fused.blocks import sharing_weights
from benchmarks.gpu.bench import (
    Bench,
    attempts,
    encoders_at_home,
    measure,
    recorded,
    watching_a_step,
)
from benchmarks.gpu.facts import reset_peak_memory, wait_for
from benchmarks.gpu.results import RECIPE
from benchmarks.plain_recipe import plain_steps

FALLBACK_FLOP = 1.72e12
"""Operations of one step with one image at 512 px, used if this run cannot count them."""
_RECOMPUTED = 1 / 5
"""Share of attention's backward pass that repeats the forward pass: one of five products."""


WAYS = ("recipe", "eager", "graphs", "channels-last", "kernels", "compiled")
"""The plain recipe; the trainer, each with one more optimization than the one before; and
torch.compile instead of our kernels, which takes minutes and is measured on request only."""


@dataclass(frozen=True)
class Trick:
    """One of the trainer's ways to run a step."""

    name: str
    execution: ExecutionOptions
    compiled: bool = False


def tricks(dtype: torch.dtype) -> dict[str, Trick]:
    """All of ``WAYS`` except the recipe."""
    eager = ExecutionOptions(dtype=dtype)
    recorded = replace(eager, make_recorder=CudaRecorder)
    last = replace(recorded, channels_last=True)
    return {
        "eager": Trick("encoded once, resident, nothing read back, packed LoRA", eager),
        "graphs": Trick("+ CUDA graphs", recorded),
        "channels-last": Trick("+ channels last", last),
        "kernels": Trick("+ fused kernels", replace(last, fused=True)),
        "compiled": Trick("channels last, graphs, compiled", last, compiled=True),
    }


def speed(
    options: argparse.Namespace,
    bench: Bench,
    flop: float,
    limit: float,
    note: Callable[[dict[str, Any]], None],
) -> None:
    """Measure the requested ways at each batch size."""
    ours = tricks(bench.base.unet.dtype)
    for batch in options.batches:
        slowest = None
        for way in options.ways:
            trick = ours.get(way)
            if trick is None:
                rows = attempts(partial(measure_recipe, bench, batch), RECIPE)
            else:
                rows = attempts(partial(measure_trick, bench, trick, batch), trick.name)
            for row in rows:
                if "steps_per_s" in row:
                    reached = flop * row["images_per_s"] / 1e12
                    row["tflops"] = round(reached, 2)
                    row["share_of_matmul_limit"] = round(reached / limit, 3)
                    slowest = slowest or row["steps_per_s"]
                    row["times_the_first"] = round(row["steps_per_s"] / slowest, 2)
                note({"batch": batch, **row})


def measure_recipe(bench: Bench, batch: int) -> dict[str, Any]:
    """Measure the plain recipe in the same precision."""
    # The trainers of other rows leave the weights in their own layout.
    torch.nn.Module.to(bench.base.unet, memory_format=torch.contiguous_format)
    reset_peak_memory(bench.device)
    steps = plain_steps(bench.base, bench.images, bench.resolution, 1_000_000, batch)
    try:
        return measure(bench, batch, lambda: next(steps))
    finally:
        steps.close()
        encoders_at_home(bench.base)


def measure_trick(bench: Bench, trick: Trick, batch: int) -> dict[str, Any]:
    """Measure one of the trainer's ways to run a step."""
    if trick.compiled:
        # Each batch size is compiled separately, as its graph is recorded separately.
        unet = sharing_weights(bench.base.unet)
        unet.compile(dynamic=False)
        bench = replace(bench, base=replace(bench.base, unet=unet))
    try:
        reset_peak_memory(bench.device)
        started = time.perf_counter()
        with bench.trainer(trick.execution).open(bench.plan(batch), None) as session:
            wait_for(bench.device)
            opened = time.perf_counter() - started
            row = measure(bench, batch, session.advance)
            if trick.execution.make_recorder is not None:
                row["still_recorded"] = recorded(session)
            return {**row, "open_s": round(opened, 2)}
    finally:
        torch.compiler.reset()


def count_flop(bench: Bench) -> float:
    """Operations of one step with one image, as torch counts them, without those that attention
    repeats in the backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    def counted(step: Callable[[], None]) -> float:
        with FlopCounterMode(display=False) as counter:
            step()
        counts = counter.get_flop_counts()["Global"]
        again = sum(n for name, n in counts.items() if re.search("attention.*backward", str(name)))
        return float(counter.get_total_flops() - _RECOMPUTED * again)

    eager = ExecutionOptions(dtype=bench.base.unet.dtype)
    with bench.trainer(eager).open(bench.plan(1), None) as session:
        return watching_a_step(session, counted)
