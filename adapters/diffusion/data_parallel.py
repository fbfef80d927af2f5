"""One run on several devices, by ``torch.distributed``: a process for each device.

Each process (a rank) trains the same run on its share of every batch, and ``train_step`` sums the
gradients. So all ranks always have the same weights. Rank 0 is the worker or the command itself.
Only rank 0 reports, checkpoints and stores; the others wait for it before every sum.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from application.ports import TrainerBroken
from domain.failure import Failure, TrainingFailed
from domain.training_plan import TrainingPlan

if TYPE_CHECKING:
    from adapters.diffusion.train_step import Batch
    from adapters.diffusion.trainer import DiffusionTrainer

log = logging.getLogger(__name__)

_IN_STEP = timedelta(minutes=5)
"""Limit for all ranks to reach the same point of a step, far above any step's duration."""
_BETWEEN_STEPS = timedelta(days=7)
"""Limit for rank 0 to take the next step: it may be waiting for a store that is unavailable."""


class Rank:
    """One of the processes that train a run.

    Methods raise ``TrainerBroken`` if another rank has died, or the failure that it reported.

    Args:
        file: file through which the ranks find each other. It does not exist yet.
    """

    def __init__(self, number: int, count: int, file: Path) -> None:
        self.number, self.count, self._file = number, count, file
        self._sockets: dist.ProcessGroup | None = None

    @cached_property
    def _store(self) -> Any:
        # Ignored: torch declares no type for this class.
        return dist.FileStore(str(self._file), self.count)  # type: ignore[attr-defined]

    def report(self, failure: Failure | None) -> None:
        """Let the other ranks know that this one is ready for the first step, or has failed."""
        self._store.set(str(self.number), pickle.dumps(failure))

    def join(self, device: torch.device) -> None:
        """Wait until all ranks are ready for the first step."""
        with self._translate_errors():
            self.report(None)
            self._store.wait([str(number) for number in range(self.count)], _IN_STEP)
            self._raise_reported()
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=self._store,
                rank=self.number,
                world_size=self.count,
                timeout=_IN_STEP,
            )
            self._sockets = dist.new_group(backend="gloo", timeout=_BETWEEN_STEPS)

    def share(self, batch: Batch) -> Batch:
        """This rank's images of a batch. A rank without images trains one with weight 0, because
        every rank must take part in the sum."""
        parts = list(batch.split(-(-len(batch.noisy_latents) // self.count)))
        if self.number < len(parts):
            return parts[self.number]
        return replace(next(batch.split(1)), loss_weights=torch.zeros_like(batch.loss_weights[:1]))

    def all_reduce(self, *sums: torch.Tensor) -> None:
        """Wait for all ranks, then sum each tensor over them, in place."""
        with self._translate_errors():
            # Over sockets, which close when a process dies; NCCL would block the GPU for minutes.
            limit = _BETWEEN_STEPS if self.number else _IN_STEP
            dist.monitored_barrier(self._sockets, timeout=limit)
            for tensor in sums:
                dist.all_reduce(tensor)

    def _raise_reported(self) -> None:
        for key in map(str, range(self.count)):
            if self._store.check([key]) and (failure := pickle.loads(self._store.get(key))):
                raise TrainingFailed(failure)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise the cause of an error of torch.distributed: another rank has failed or died."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            self._raise_reported()
            reason = str(error).partition("\n")[0]
            raise TrainerBroken(
                f"another process of this multi-GPU job has ended: {reason}"
            ) from error


StartRanks = Callable[[TrainingPlan, bytes | None], AbstractContextManager[Rank]]
MakeTrainer = Callable[[str, StartRanks], "DiffusionTrainer"]


@contextmanager
def start_ranks(
    devices: Sequence[str], make_trainer: MakeTrainer, plan: TrainingPlan, resume: bytes | None
) -> Iterator[Rank]:
    """Run a rank on each of the devices during the with-block. Yields rank 0; call its ``join``.

    Args:
        make_trainer: makes a rank's trainer on its device. It can be pickled.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        count = len(devices) + 1
        first, *ranks = [Rank(number, count, Path(folder) / "ranks") for number in range(count)]
        processes = []
        try:
            for rank, device in zip(ranks, devices, strict=True):
                given = (rank, device, make_trainer, plan, resume)
                process = spawn.Process(target=_train, args=given, daemon=True)
                process.start()
                processes.append(process)
            yield first
        finally:
            for process in processes:
                process.kill()
                process.join()
            if dist.is_initialized():
                dist.destroy_process_group()


def _train(
    rank: Rank, device: str, make_trainer: MakeTrainer, plan: TrainingPlan, resume: bytes | None
) -> None:
    """Main function of a rank other than 0. It exits with code 1 on errors."""
    # A signal to the process group is for rank 0, which ends this process when it has finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with make_trainer(device, lambda *_: nullcontext(rank)).open(plan, resume) as session:
            while not session.finished:
                session.advance()
        return
    except TrainingFailed as error:
        rank.report(error.failure)
    except Exception as error:
        unexpected = not isinstance(error, TrainerBroken)
        log.error("process %d exits: %s", rank.number, error, exc_info=unexpected)
    os._exit(1)  # at once, because rank 0 waits for it: NCCL can delay Python's own exit
