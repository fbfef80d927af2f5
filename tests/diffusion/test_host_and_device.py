"""Tensors of a GPU are never combined with tensors of the host or of another GPU, and within an
epoch the host does not wait for the GPU."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from adapters.diffusion.base.model import BaseModel, load_base
from adapters.diffusion.execution import ExecutionOptions
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.diffusion.training_model import training_model
from adapters.images.decode import decode
from domain.image import TrainingImage
from tests.diffusion.conftest import SMALL_BASE
from tests.diffusion.fake_device import (
    FAKE_DEVICE,
    FakeDevice,
    let_adamw_be_fused_there,
    move_to_fake_device,
)
from tests.diffusion.runs import EVERY_OPTION, plan_of

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]
BFLOAT16 = ExecutionOptions(dtype=torch.bfloat16, channels_last=True, fused=True)
FLOAT16 = ExecutionOptions(dtype=torch.float16)


@pytest.fixture
def own_base() -> BaseModel:
    """A copy of the base, which the tests move and change."""
    return load_base(str(SMALL_BASE))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """The modes, which the device thread enters because they apply per thread."""
    let_adamw_be_fused_there(monkeypatch)
    return FakeDevice()


def entering(monkeypatch: pytest.MonkeyPatch, device: FakeDevice) -> None:
    """Enable the fake device in the device's thread when a run is prepared."""

    def entered(*arguments: Any) -> Any:
        device.__enter__()
        return training_model(*arguments)

    monkeypatch.setattr("adapters.diffusion.trainer.training_model", entered)


@pytest.mark.parametrize(
    ("execution", "options", "slots"),
    [
        (BFLOAT16, {"epochs": 2, "validation_epochs": 2, **EVERY_OPTION}, 2),
        (FLOAT16, {"epochs": 1, "lora_dropout": 0.1, "use_dora": True}, 1),
        (BFLOAT16, {"epochs": 1, "train_text_encoder": True, "text_encoder_lr": 1e-5}, 1),
    ],
)
def test_runs_stay_on_their_gpu_without_synchronisation_within_an_epoch(
    own_base: BaseModel,
    images: Images,
    device: FakeDevice,
    monkeypatch: pytest.MonkeyPatch,
    execution: ExecutionOptions,
    options: dict[str, Any],
    slots: int,
) -> None:
    move_to_fake_device(own_base)
    entering(monkeypatch, device)
    plan = plan_of(images[:2], sample_prompts=("a house",), **options)
    trainer = DiffusionTrainer(
        *(own_base, decode, FAKE_DEVICE),
        execution=execution,
        slots=slots,
        max_wait=0.0,
        preview_steps=1,
    )
    with ExitStack() as stack:
        sessions: list[Any] = [stack.enter_context(trainer.open(plan, None)) for _ in range(slots)]
        for _ in range(options["epochs"]):
            for session in sessions:
                session.batches.prefetch(session.step)  # drawn and sent, for the whole epoch
            device.waited.clear()
            first = [session.advance() for session in sessions]
            assert device.waited == []
            last = [session.advance() for session in sessions]
            finished = [report.epoch_finished for report in (*first, *last)]
            assert finished == [False] * slots + [True] * slots
            assert device.waited
        for session in sessions:
            assert session.finished
            assert session.checkpoint().data
            assert session.weights()
            device.takes_single_numbers = True  # diffusers' schedules lie on the host
            assert len(session.previews(with_lora=True)) == 1
            device.takes_single_numbers = False
