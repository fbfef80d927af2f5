"""A whole job, from files to weights."""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import Any

import torch

from adapters.diffusion.base.model import load_base
from adapters.diffusion.strategy import choose_strategy
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.pillow import decode
from application.ports import TrainingPlan
from benchmarks.full_size import RESOLUTION, SMALL_BASE, full_size_base, save_base
from benchmarks.gpu.bench import RANK
from benchmarks.gpu.facts import gib, wait_for
from benchmarks.pictures import drawn_pictures
from domain.parameters import TrainingParameters


def whole_job(
    options: argparse.Namespace, device: torch.device, folder: Path, started_up: float
) -> dict[str, Any]:
    """20 pictures from files to weights, with the process's start and the base model's loading;
    then a second one.

    Args:
        started_up: seconds from the process's start to the end of its imports.
    """
    at = SMALL_BASE
    if not options.tiny:
        at = folder / "base"
        save_base(full_size_base(device, torch.float16), at)
    pictures = drawn_pictures(folder / "job", 20)
    gc.collect()
    started = time.perf_counter()
    strategy = choose_strategy(device)
    base = load_base(str(at), device=device, dtype=strategy.compute)
    trainer = DiffusionTrainer(base, decode, device, strategy=strategy)
    loaded = time.perf_counter() - started
    resolution = 64 if options.tiny else RESOLUTION
    parameters = TrainingParameters(epochs=options.epochs, resolution=resolution, rank=RANK)
    plan = TrainingPlan(style_id=1, pictures=pictures, tags=(), parameters=parameters)
    row: dict[str, Any] = {"pictures": len(pictures), "epochs": options.epochs}
    row |= {"imports_s": round(started_up, 2), "load_base_s": round(loaded, 2)}
    row |= _job(trainer, plan)
    row["total_s"] = round(started_up + loaded + row["job_s"], 2)
    with trainer.open(plan, None) as session:
        opened = time.perf_counter()
        session.advance()
        wait_for(device)
        row["second_job_first_step_s"] = round(time.perf_counter() - opened, 3)
    return row


def _job(trainer: DiffusionTrainer, plan: TrainingPlan) -> dict[str, Any]:
    started = time.perf_counter()
    with trainer.open(plan, None) as session:
        opened = time.perf_counter()
        while not session.finished:
            session.advance()
        weights = session.weights()
        ended = time.perf_counter()
        return {
            "encode_s": round(opened - started, 2),
            "train_s": round(ended - opened, 2),
            "job_s": round(ended - started, 2),
            "steps": session.total_steps,
            "steps_per_s": round(session.total_steps / (ended - opened), 2),
            "peak_gib": gib(session.peak_memory),
            "weights_bytes": len(weights),
            "last_loss": session.history[-1].loss,
        }
