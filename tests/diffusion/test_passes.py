"""A step asks the device for nothing back, or it could neither run ahead nor be recorded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.dataset import EncodedDataset, EncodedImage
from adapters.diffusion.data.step_inputs import LEARNING_RATE_SLOTS, StepInputs
from adapters.diffusion.lora.adapters import attached
from adapters.diffusion.lora.flat_path import flat_path_of
from adapters.diffusion.step.loss import objective_of
from adapters.diffusion.step.passes import Passes
from adapters.diffusion.step.replay import Replay
from adapters.diffusion.step.steps import Place, Steps
from adapters.diffusion.step.update import Update
from domain.parameters import TrainingParameters

pytestmark = pytest.mark.integration

SIZE = (64, 64)
SHAPE = (2, 4, 8, 8)
NUMBERS = 2 * 2 * 4 * 8 * 8 + LEARNING_RATE_SLOTS


class HasNoValues(Exception):
    """Somebody looked at a value."""


@pytest.fixture
def valueless(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device whose tensors have shapes and no values: to look at one is an error."""

    def look(*_: Any) -> Any:
        raise HasNoValues

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, look)
    # The one kernel that no stand-in device has.
    monkeypatch.setattr(torch, "_fused_adamw_", lambda *_, **__: None)
    return torch.device("meta")


def inputs_on(device: torch.device) -> StepInputs:
    return StepInputs(
        size=SIZE,
        shape=SHAPE,
        floats=torch.zeros(NUMBERS, device=device),
        indices=torch.zeros(3, 2, dtype=torch.long, device=device),
        rate=1e-3,
    )


def dataset_on(device: torch.device, width: int) -> EncodedDataset:
    posterior = torch.zeros(1, 4, 8, 8, device=device)
    images = (EncodedImage(SIZE, posterior, posterior),) * 2
    return EncodedDataset(images, torch.zeros(2, 77, width, device=device), (1, 1), 0.18)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_step_looks_at_no_value(
    base: BaseModel, valueless: torch.device, micro_batch: int
) -> None:
    unet = copy.deepcopy(base.unet).to(valueless)
    parameters = TrainingParameters(epochs=1, resolution=64, rank=4)
    dataset = dataset_on(valueless, unet.config.cross_attention_dim)
    with (
        attached(unet, rank=4, alpha=4.0, seed=0) as adapters,
        flat_path_of(adapters, torch.float32) as path,
    ):
        update = Update(adapters.flat, parameters, loss_scaling=False)
        passes = Passes(
            unet,
            objective_of(base.noise_schedule, None, valueless),
            dataset,
            scaled=update.scaled,
            refresh=path.refresh,
        )
        steps = Steps(Place(valueless, unet, passes, Replay(None)), update)
        for _ in range(2):
            steps.run(inputs_on(valueless), micro_batch)
        with pytest.raises(HasNoValues):
            update.read(adapters.flat)
