"""Every training option takes effect, resumes exactly, and is in the file."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from adapters.common.tensor_file import decode as read_file
from adapters.diffusion import optimizer_libraries as optimizers
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.optimizer import (
    OptimizerState,
    build_optimizer,
    copy_state,
    restore_state,
)
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from application.ports import CheckpointRejected
from domain.failure import FailureCode, TrainingFailed
from domain.image import TrainingImage
from domain.parameters import RequestedParameters, TrainingParameters
from tests.diffusion.runs import needs_prodigy, plan_of, predict, run, shown

pytestmark = pytest.mark.integration

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="waits for bitsandbytes: pip install 'style-trainer[adam8bit]'",
)

OPTIONS = [
    pytest.param({"lora_dropout": 0.3}, id="lora_dropout"),
    pytest.param({"use_rslora": True}, id="use_rslora"),
    pytest.param({"lora_targets": "attention+ff"}, id="attention+ff"),
    pytest.param(
        {"lora_targets": "attention+ff+conv", "use_dora": True}, id="attention+ff+conv,use_dora"
    ),
    pytest.param(
        {"train_text_encoder": True, "use_dora": True, "lora_dropout": 0.1},
        id="text_encoder,use_dora,lora_dropout",
    ),
    pytest.param(
        {"optimizer": "prodigy", "learning_rate": 1.0}, id="prodigy", marks=needs_prodigy
    ),
    pytest.param({"optimizer": "adamw8bit"}, id="adamw8bit", marks=needs_bitsandbytes),
]


@pytest.fixture(scope="module")
def without_options(base: BaseModel, images: tuple[TrainingImage, ...]) -> torch.Tensor:
    """The UNet's prediction after three steps of a run without options."""
    with DiffusionTrainer(base, decode).open(plan_of(images[:2]), None) as session:
        for _ in range(3):
            session.advance()
        with shown(session):
            return predict(base.unet)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_reaches_the_training_and_a_resumed_run_is_exact(
    trainer: DiffusionTrainer,
    base: BaseModel,
    images: tuple[TrainingImage, ...],
    without_options: torch.Tensor,
    option: dict[str, Any],
) -> None:
    plan = plan_of(images[:2], **option)
    with trainer.open(plan, None) as session:
        for _ in range(3):
            session.advance()
        with shown(session):
            found = predict(base.unet)
        assert torch.isfinite(found).all()
        assert not torch.equal(found, without_options)
        session.advance()
        uninterrupted = session.weights(), session.checkpoint().data
    checkpoint = None
    for steps in (1, 2, 1):
        torch.manual_seed(steps)
        outcome = run(trainer, plan, resume=checkpoint, steps=steps)
        checkpoint = outcome.checkpoint
    assert (outcome.weights, outcome.checkpoint) == uninterrupted


@pytest.mark.parametrize(
    ("name", "library"), [("prodigy", "prodigyopt"), ("adamw8bit", "bitsandbytes")]
)
def test_an_optimizer_that_is_not_installed_is_rejected(
    trainer: DiffusionTrainer,
    images: tuple[TrainingImage, ...],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    library: str,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(optimizers, "find_spec", lambda n: None if n == library else found(n))
    with (
        pytest.raises(TrainingFailed, match=f"{name} is not available here") as failed,
        trainer.open(plan_of(images[:1], optimizer=name), None),
    ):
        pass
    assert failed.value.failure.code is FailureCode.INVALID_TASK
    assert not failed.value.failure.retryable
    with trainer.open(plan_of(images[:1]), None) as session:
        session.advance()


OPTIMIZERS = [
    "adamw",
    pytest.param("prodigy", marks=needs_prodigy),
    pytest.param("adamw8bit", marks=needs_bitsandbytes),
]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("interrupted", [0, 1, 7])
def test_an_optimizer_resumes_from_its_state_bit_for_bit(name: str, interrupted: int) -> None:
    """There are 5,000 weights, because bitsandbytes uses 8 bits from 4,096 on."""
    requested = RequestedParameters({"optimizer": name, "weight_decay": 0.1})
    parameters = requested.resolve(image_count=1, native_resolution=64)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(5_000, generator=generator)
    gradients = torch.randn(12, 5_000, generator=generator)

    def go(weights: torch.nn.Parameter, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            weights.grad = gradients[step].clone()
            optimizer.param_groups[0]["lr"] = parameters.learning_rate * (12 - step) / 12
            optimizer.step()

    uninterrupted = torch.nn.Parameter(start.clone())
    go(uninterrupted, build_optimizer(uninterrupted, parameters), range(12))
    first = torch.nn.Parameter(start.clone())
    optimizer = build_optimizer(first, parameters)
    go(first, optimizer, range(interrupted))
    second = torch.nn.Parameter(first.detach().clone())
    resumed = build_optimizer(second, parameters)
    restore_state(resumed, copy_state(optimizer))
    go(second, resumed, range(interrupted, 12))
    assert not torch.equal(uninterrupted, start)
    assert torch.equal(second, uninterrupted)


@pytest.mark.parametrize("weights", [5, 400])
def test_a_state_of_other_weights_is_rejected(weights: int) -> None:
    """A tensor of another library version is restored if it has as many values as the weights,
    or as the 256-entry table of 8-bit optimizers."""
    parameter = torch.nn.Parameter(torch.zeros(weights))
    optimizer = build_optimizer(parameter, TrainingParameters(epochs=1, resolution=64))
    own = copy_state(optimizer)
    for name in own.tensors:
        left = {other: tensor for other, tensor in own.tensors.items() if other != name}
        with pytest.raises(CheckpointRejected, match=f"lacks the optimizer's {name}"):
            restore_state(optimizer, OptimizerState(left, own.numbers))
    most = max(weights, 256)
    for name, tensor, message in (
        ("exp_avg", torch.zeros(weights - 1), rf"exp_avg is \({weights - 1},\)"),
        ("exp_avg", torch.zeros(weights, 1), rf"exp_avg is \({weights}, 1\)"),
        ("other", torch.zeros(most + 1), rf"other is \({most + 1},\)"),
    ):
        with pytest.raises(CheckpointRejected, match=message):
            restore_state(optimizer, OptimizerState({**own.tensors, name: tensor}, own.numbers))
    fitting = torch.ones(most)
    restore_state(optimizer, OptimizerState({**own.tensors, "other": fitting}, own.numbers))
    fitting.zero_()
    assert copy_state(optimizer).tensors["other"].all()


def test_optimizer_state_has_only_finite_numbers_that_a_run_does_not_reset() -> None:
    parameter = torch.nn.Parameter(torch.zeros(5))
    optimizer = build_optimizer(parameter, TrainingParameters(epochs=1, resolution=64))
    optimizer.param_groups[0] |= {"d": 0.5, "k": 3, "endless": float("inf"), "no": float("nan")}
    optimizer.state[parameter] |= {"step": 7}
    numbers = copy_state(optimizer).numbers
    assert numbers.items() >= {"d": 0.5, "k": 3, "step": 7, "eps": 1e-8}.items()
    assert not numbers.keys() & {"lr", "params", "endless", "no", "fused", "capturable"}


@needs_prodigy
def test_prodigy_finds_a_learning_rate_of_its_own() -> None:
    parameters = RequestedParameters({"optimizer": "prodigy"}).resolve(
        image_count=10, native_resolution=64
    )
    assert parameters.learning_rate == 1.0
    weights = torch.nn.Parameter(torch.full((100,), 3.0))
    optimizer = build_optimizer(weights, parameters)
    estimates = []
    for _ in range(60):
        weights.grad = 2 * (weights.detach() - 1)
        optimizer.step()
        estimates.append(copy_state(optimizer).numbers["d"])
    assert estimates[-1] > 100 * estimates[0]
    assert (weights - 1).abs().max() < 2


def test_a_base_that_predicts_velocity_trains(
    base: BaseModel, images: tuple[TrainingImage, ...]
) -> None:
    schedule = DDPMScheduler.from_config(
        base.noise_schedule.config, prediction_type="v_prediction"
    )
    trainer = DiffusionTrainer(replace(base, noise_schedule=schedule), decode)
    plan = plan_of(images[:2], epochs=16, validation_epochs=8, snr_gamma=5.0)
    outcome = run(trainer, plan)
    first, last = (outcome.history[epoch].evaluation_loss or 0.0 for epoch in (7, 15))
    assert 0 < last < first
    _, metadata = read_file(outcome.weights)
    assert metadata["modelspec.prediction_type"] == "v"
    assert metadata["ss_base_model_version"] == "sd_v1_v"
