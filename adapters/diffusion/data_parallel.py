"""One run on several devices, by ``torch.distributed``: a process for each device.

Each process (a rank) trains the same run on its share of every batch, and ``train_step`` sums the
gradients. So all ranks always have the same weights. Rank 0 is the worker or the command itself.
Only rank 0 reports, checkpoints and stores; it triggers every step of the other ranks.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from PIL import Image

from application.ports import TrainerBroken
from domain.training_plan import TrainingPlan

if TYPE_CHECKING:
    from adapters.diffusion.base.model import BaseModel
    from adapters.diffusion.train_step import Batch

_TIMEOUT = timedelta(minutes=5)
"""Limit for all ranks to reach the same point of a step, far above any step's duration."""


@dataclass(frozen=True)
class Rank:
    """One of the processes that train a run."""

    number: int
    count: int
    file: Path
    """File through which the ranks find each other. It does not exist yet."""
    others: Sequence[Connection] = ()
    """On rank 0: a connection to each of the others."""

    def join(self, device: torch.device) -> None:
        """Wait for all ranks."""
        with _peers_may_be_gone():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                init_method=self.file.as_uri(),
                rank=self.number,
                world_size=self.count,
                timeout=_TIMEOUT,
            )

    def begin_step(self) -> None:
        """Make the other ranks train the next step, too.

        Raises:
            TrainerBroken: a rank has died.
        """
        with _peers_may_be_gone():
            for other in self.others:
                other.send(None)

    def share(self, batch: Batch) -> Batch:
        """This rank's images of a batch. A rank without images trains one with weight 0, because
        every rank must take part in the sum."""
        parts = list(batch.split(-(-len(batch.noisy) // self.count)))
        if self.number < len(parts):
            return parts[self.number]
        return replace(next(batch.split(1)), loss_weights=torch.zeros_like(batch.loss_weights[:1]))

    def all_reduce(self, *sums: torch.Tensor) -> None:
        """Sum each tensor over all ranks, in place.

        Raises:
            TrainerBroken: a rank has died.
        """
        with _peers_may_be_gone():
            for tensor in sums:
                dist.all_reduce(tensor)


StartRanks = Callable[[TrainingPlan, bytes | None], AbstractContextManager[Rank]]


@dataclass(frozen=True)
class OtherRanks:
    """Starts the other ranks of a run. All fields can be pickled."""

    devices: Sequence[str]
    load_base: Callable[[str], BaseModel]
    decode: Callable[[bytes], Image.Image]

    @contextmanager
    def started(self, plan: TrainingPlan, resume: bytes | None) -> Iterator[Rank]:
        """Run the other ranks during the with-block. Yields rank 0; call its ``join``."""
        spawn = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as folder:
            count, file = len(self.devices) + 1, Path(folder) / "ranks"
            own, processes = [], []
            try:
                for number, device in enumerate(self.devices, start=1):
                    ours, theirs = spawn.Pipe()
                    given = (Rank(number, count, file), device, self, plan, resume, theirs)
                    process = spawn.Process(target=_train_as, args=given, daemon=True)
                    process.start()
                    theirs.close()
                    own.append(ours)
                    processes.append(process)
                yield Rank(0, count, file, own)
            finally:
                for process in processes:
                    process.kill()
                    process.join()
                if dist.is_initialized():
                    dist.destroy_process_group()


def _train_as(
    rank: Rank,
    device: str,
    how: OtherRanks,
    plan: TrainingPlan,
    resume: bytes | None,
    commands: Connection,
) -> None:
    """Main function of a rank other than 0."""
    # A signal to the process group is for rank 0, which ends this process when it has finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from adapters.diffusion.trainer import DiffusionTrainer

    trainer = DiffusionTrainer(
        how.load_base(device), how.decode, device, start_ranks=lambda *_: nullcontext(rank)
    )
    with trainer.open(plan, resume) as session:
        while not session.finished:
            commands.recv()
            session.advance()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # the main thread may be waiting for rank 0 for minutes


@contextmanager
def _peers_may_be_gone() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise TrainerBroken(
            f"another process of this multi-GPU job has ended: {reason}"
        ) from error
