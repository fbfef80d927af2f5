"""One run in two processes: the CPU stands for each of two devices, and gloo for NCCL."""

from __future__ import annotations

import multiprocessing
import os
import signal
from functools import partial
from typing import Any

import pytest
import torch

from adapters.common.device_memory import gpu_oom
from adapters.diffusion.base.model import BaseModel, load_base
from adapters.diffusion.data_parallel import MakeTrainer, StartRanks, start_ranks
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from application.ports import TrainerBroken
from domain.failure import TrainingFailed
from domain.image import TrainingImage
from entrypoints.bootstrap import build_trainer
from entrypoints.settings import load_settings
from tests.diffusion.conftest import SMALL_BASE
from tests.diffusion.runs import EVERY_OPTION, drive, plan_of, run

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]


@pytest.fixture
def parallel(base: BaseModel) -> DiffusionTrainer:
    settings = load_settings(env_file=None).model_copy(update={"base_model": str(SMALL_BASE)})
    return build_trainer(settings, base, ("cpu", "cpu"), slots=1)


def assert_alike(found: Any, wanted: Any) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-4)
        assert one.evaluation_loss == pytest.approx(other.evaluation_loss, rel=2e-4)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=2e-3)


def test_two_processes_train_what_one_does_and_resume_when_one_has_died(
    trainer: DiffusionTrainer, parallel: DiffusionTrainer, images: Images
) -> None:
    """Four square images and a larger one give batches of 3, 1 and 1: one rank may get none."""
    plan = plan_of(images, batch_size=3, validation_epochs=1, **EVERY_OPTION)
    with parallel.open(plan, None) as session:
        session.advance()
        checkpoint = session.checkpoint().data
        (other,) = multiprocessing.active_children()
        assert other.pid is not None
        # Rank 0 ends its ranks itself: a signal to the whole group does not.
        os.kill(other.pid, signal.SIGTERM)
        os.kill(other.pid, signal.SIGINT)
        session.advance()
        os.kill(other.pid, signal.SIGKILL)
        with pytest.raises(TrainerBroken, match="has ended"):
            drive(session)
    wanted = run(trainer, plan).history
    for one in (trainer, parallel):
        assert_alike(run(one, plan, resume=checkpoint).history, wanted)
    assert not multiprocessing.active_children()


class LosesRank0(DiffusionTrainer):
    """A rank's trainer that finds rank 0 dead."""

    def __init__(self, _device: str, _start_ranks: StartRanks) -> None: ...

    def open(self, plan: Any, resume: Any) -> Any:
        raise TrainerBroken("another process of this multi-GPU job has ended: closed")


def test_a_rank_without_rank_0_exits_without_a_traceback(
    images: Images, capfd: pytest.CaptureFixture[str]
) -> None:
    with start_ranks(("cpu",), LosesRank0, plan_of(images), None):
        (other,) = multiprocessing.active_children()
        other.join(timeout=60)
        assert other.exitcode == 1
    printed = capfd.readouterr().err
    assert "process 1 exits: another process" in printed
    assert "Traceback" not in printed


class FitsNothing(DiffusionTrainer):
    """A rank's trainer on a device without memory for a step."""

    def __init__(self, device: str, start_ranks: StartRanks) -> None:
        base = load_base(str(SMALL_BASE))
        super().__init__(base, decode, device, start_ranks=start_ranks)
        forward = base.unet.forward

        def limited(*arguments: Any, **keywords: Any) -> Any:
            if torch.is_grad_enabled():
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(*arguments, **keywords)

        base.unet.forward = limited


class FitsNoImages(DiffusionTrainer):
    """A rank's trainer on a device without memory for the run's images."""

    def __init__(self, _device: str, _start_ranks: StartRanks) -> None: ...

    def open(self, plan: Any, resume: Any) -> Any:
        raise gpu_oom()


class IsFaulty(FitsNoImages):
    """A rank's trainer with a fault of the program."""

    def open(self, plan: Any, resume: Any) -> Any:
        raise KeyError("images")


@pytest.mark.parametrize("make_trainer", [FitsNothing, FitsNoImages])
def test_the_failure_of_one_process_is_that_of_the_job(
    base: BaseModel, images: Images, make_trainer: MakeTrainer
) -> None:
    trainer = DiffusionTrainer(
        base, decode, "cpu", start_ranks=partial(start_ranks, ("cpu",), make_trainer)
    )
    with (
        pytest.raises(TrainingFailed) as failed,
        trainer.open(plan_of(images, batch_size=4), None) as session,
    ):
        drive(session)
    assert failed.value.failure == gpu_oom().failure


def test_a_fault_in_one_process_is_logged_with_its_traceback(
    images: Images, capfd: pytest.CaptureFixture[str]
) -> None:
    with start_ranks(("cpu",), IsFaulty, plan_of(images), None):
        (other,) = multiprocessing.active_children()
        other.join(timeout=60)
        assert other.exitcode == 1
    printed = capfd.readouterr().err
    assert "process 1 exits: 'images'" in printed
    assert "Traceback" in printed


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 2, "lora_dropout": 0.1}])
def test_a_run_that_cannot_be_distributed_has_one_process(
    parallel: DiffusionTrainer, images: Images, options: dict[str, Any]
) -> None:
    with parallel.open(plan_of(images, **options), None):
        assert not multiprocessing.active_children()
