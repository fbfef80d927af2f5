"""One job's steps shared out among this machine's cards, beside one card alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from adapters.diffusion.backend import choose_backend
from benchmarks.gpu.bench import Bench, attempts, measure
from benchmarks.gpu.facts import forget_peak, gib


def several_cards(
    options: argparse.Namespace, bench: Bench, note: Callable[[dict[str, Any]], None]
) -> None:
    """The largest batch on 1, 2, 4... cards and on all that there are; nothing where there is
    one."""
    first = str(bench.device)
    if bench.device.type == "cuda":
        there = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        own = there[bench.device.index or 0]
        cards = [own, *(card for card in there if card != own)]
    else:
        cards = [first, first]  # to rehearse
    batch = max(options.batches)
    most = min(len(cards), batch)
    counts = sorted({count for count in (1, 2, 4, 8) if count < most} | {most})
    alone = None
    for count in counts if len(counts) > 1 else ():
        for row in attempts(
            lambda count=count: measure_cards(bench, batch, cards[:count]), "one job on cards"
        ):
            if "images_per_s" in row:
                alone = row["images_per_s"] if count == 1 else alone
                if alone is not None:
                    row["times_one_card"] = round(row["images_per_s"] / alone, 2)
            note({"cards": count, "pictures": batch, **row})


def measure_cards(bench: Bench, batch: int, cards: list[str]) -> dict[str, Any]:
    """Steps of a batch of so many pictures on these cards."""
    best = replace(choose_backend(bench.device), compute=bench.base.unet.dtype, capture=True)
    for card in cards:
        forget_peak(torch.device(card))
    trainer = bench.trainer(best, helpers=cards[1:])
    with trainer.open(bench.plan(batch), None) as session:
        row = measure(bench, batch, session.advance)
        return {**row, "peak_gib": gib(session.peak_memory)}
