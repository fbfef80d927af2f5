from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.diffusion import checkpoint
from adapters.diffusion.checkpoint import RunState, decode_checkpoint, encode_checkpoint
from adapters.diffusion.oom import MemoryPlan
from adapters.diffusion.optimizer import OptimizerState
from application.ports import CheckpointRejected
from domain.loss_curve import EpochRecord

IDENTITY: dict[str, Any] = {
    "parameters": {"seed": 1, "learning_rate": 0.1, "sample_prompts": ("a fox",)},
    "images": "p",
    "image sizes": "s",
    "captions": "c",
    "base model": "b",
    "network_weights": None,
}
STATE = RunState(
    step=7,
    weights=torch.arange(5.0),
    optimizer=OptimizerState(
        {"exp_avg": torch.arange(5.0) / 3, "state2": torch.arange(5, dtype=torch.uint8)},
        {"d": 1 / 3, "k": 7},
    ),
    sums=torch.tensor([0.1, 0.2, 0.3]),
    history=(
        EpochRecord(1, 1 / 3, 1e-4, 0.5, 0.7, prediction_losses=(0.1, 1.3)),
        EpochRecord(2, 0.1, 1e-5, 0.0, 0.0, True),
    ),
    baseline=EpochRecord(0, 0.9, 0.0, 0.9, prediction_losses=(0.8, 1.0)),
    rollbacks=2,
    memory=MemoryPlan(3, checkpointing=True),
    loss_scale={"scale": 1024.0, "_growth_tracker": 5},
)
DATA = encode_checkpoint(STATE, IDENTITY)


def test_a_checkpoint_is_read_back_exactly() -> None:
    state = decode_checkpoint(DATA, IDENTITY, 5)
    for name in ("step", "history", "baseline", "rollbacks", "memory", "loss_scale"):
        assert getattr(state, name) == getattr(STATE, name)
    for name in ("weights", "sums"):
        assert torch.equal(getattr(state, name), getattr(STATE, name))
    assert state.optimizer.numbers == STATE.optimizer.numbers
    assert state.optimizer.tensors.keys() == STATE.optimizer.tensors.keys()
    for name, tensor in state.optimizer.tensors.items():
        assert tensor.dtype == STATE.optimizer.tensors[name].dtype
        assert torch.equal(tensor, STATE.optimizer.tensors[name])


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_any_altered_byte_is_detected(position: int, change: int) -> None:
    altered = bytearray(DATA)
    altered[position] ^= change
    with pytest.raises(CheckpointRejected):
        decode_checkpoint(bytes(altered), IDENTITY, 5)


@given(st.integers(0, len(DATA) - 1))
def test_any_truncation_is_detected(length: int) -> None:
    with pytest.raises(CheckpointRejected, match="damaged"):
        decode_checkpoint(DATA[:length], IDENTITY, 5)


@pytest.mark.parametrize(
    "part", ["images", "image sizes", "captions", "base model", "network_weights"]
)
def test_a_checkpoint_of_another_run_is_rejected_with_the_difference(part: str) -> None:
    with pytest.raises(CheckpointRejected, match=f"other {part}"):
        decode_checkpoint(DATA, {**IDENTITY, part: "x"}, 5)


def test_a_checkpoint_from_before_network_weights_fits_a_run_without_them() -> None:
    former = {part: value for part, value in IDENTITY.items() if part != "network_weights"}
    assert decode_checkpoint(encode_checkpoint(STATE, former), IDENTITY, 5).step == 7


def test_a_parameter_that_differs_is_named_with_both_values() -> None:
    parameters = {**IDENTITY["parameters"], "seed": 2}
    with pytest.raises(CheckpointRejected, match="seed was 1, now it is 2"):
        decode_checkpoint(DATA, {**IDENTITY, "parameters": parameters}, 5)


def test_a_parameter_unknown_to_the_checkpoints_version_has_its_default() -> None:
    parameters = {**IDENTITY["parameters"], "optimizer": "adamw", "trigger_word": None}
    assert decode_checkpoint(DATA, {**IDENTITY, "parameters": parameters}, 5).step == 7
    parameters["optimizer"] = "prodigy"
    with pytest.raises(CheckpointRejected, match="optimizer was 'adamw', now it is 'prodigy'"):
        decode_checkpoint(DATA, {**IDENTITY, "parameters": parameters}, 5)


@pytest.mark.parametrize("weights", [torch.arange(6.0), torch.arange(5.0).half()])
def test_weights_of_another_number_or_precision_are_rejected(weights: torch.Tensor) -> None:
    data = encode_checkpoint(replace(STATE, weights=weights), IDENTITY)
    with pytest.raises(CheckpointRejected, match="weights"):
        decode_checkpoint(data, IDENTITY, 5)


def test_an_empty_optimizer_state_is_accepted_only_at_step_zero() -> None:
    """No step is done, or all steps overflowed in half precision and were skipped."""
    nothing = OptimizerState(numbers=STATE.optimizer.numbers)
    begun = replace(STATE, optimizer=nothing, loss_scale={})
    with pytest.raises(CheckpointRejected, match="damaged: the optimizer's state is missing"):
        decode_checkpoint(encode_checkpoint(begun, IDENTITY), IDENTITY, 5)
    for sound in (replace(begun, step=0), replace(begun, loss_scale={"scale": 32768.0})):
        found = decode_checkpoint(encode_checkpoint(sound, IDENTITY), IDENTITY, 5)
        assert not found.optimizer.tensors


def test_a_checkpoint_of_another_format_is_rejected_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", "4")
    former = encode_checkpoint(STATE, IDENTITY)
    monkeypatch.undo()
    with pytest.raises(CheckpointRejected, match="format '4', not '5'"):
        decode_checkpoint(former, IDENTITY, 5)
