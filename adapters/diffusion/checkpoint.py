"""A run between two steps, as one safetensors file from which another machine can resume.

Tensors: the LoRA weights in one piece, the optimizer's tensors, and the epoch's sums so far.
Everything else follows from the plan and the step, or is in the metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import torch

from adapters.common.tensor_file import TensorFileDamaged, body_of, decode, encode
from adapters.diffusion.oom import MemoryPlan
from adapters.diffusion.optimizer import OptimizerState
from application.ports import CheckpointRejected
from domain.loss_curve import EpochRecord
from domain.parameters import TrainingParameters
from domain.training_plan import TrainingPlan

FORMAT = "5"
_OPTIMIZER = "optimizer."
_DEFAULTS: dict[str, Any] = {
    parameter.name: json.loads(json.dumps(parameter.default))
    for parameter in fields(TrainingParameters)
    if parameter.default is not MISSING
}
"""Default parameters of a run, as JSON values."""


@dataclass(frozen=True)
class RunState:
    """The changing state of a run. Tensors are float32, except some of the optimizer's."""

    step: int
    """Steps done."""
    weights: torch.Tensor
    """(n,): a row of ``PackedLora.weights``."""
    optimizer: OptimizerState
    sums: torch.Tensor
    """(3,), for the epoch so far: sum of losses, sum of gradient norms, and the largest norm."""
    history: tuple[EpochRecord, ...]
    baseline: EpochRecord | None
    """The base's losses, as epoch 0."""
    rollbacks: int
    memory: MemoryPlan
    loss_scale: Mapping[str, float]
    """State of torch's ``GradScaler``; empty if losses are not scaled."""


def run_identity(
    plan: TrainingPlan,
    captions: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    base_fingerprint: str,
) -> dict[str, Any]:
    """The parts of a run that must match those of a checkpoint before the run can resume from it.

    The sizes are those that images are trained at: a version that computes sizes differently has
    other batches in an epoch.
    """
    return {
        "parameters": asdict(plan.parameters),
        "network_weights": plan.initial and hashlib.sha256(plan.initial.data).hexdigest(),
        "images": _hash([image.facts.sha256 for image in plan.images]),
        "image sizes": _hash(sizes),
        "captions": _hash(captions),
        "base model": base_fingerprint,
    }


def encode_checkpoint(state: RunState, identity: Mapping[str, Any]) -> bytes:
    """Write a checkpoint. Equal runs give equal bytes at equal steps."""
    tensors = {
        "weights": state.weights,
        "sums": state.sums,
        **{f"{_OPTIMIZER}{name}": tensor for name, tensor in state.optimizer.tensors.items()},
    }
    content = {
        "identity": identity,
        "step": state.step,
        "optimizer": dict(state.optimizer.numbers),
        "history": [asdict(record) for record in state.history],
        "before": state.baseline and asdict(state.baseline),
        "rollbacks": {"count": state.rollbacks},
        "memory": asdict(state.memory),
        "loss_scale": dict(state.loss_scale),
    }
    run = json.dumps(content, sort_keys=True)
    digest = _digest(run, tensors, encode(tensors, {}))
    return encode(tensors, {"format": FORMAT, "run": run, "sha256": digest})


def decode_checkpoint(data: bytes, identity: Mapping[str, Any], weights: int) -> RunState:
    """Read a checkpoint, on the CPU.

    Args:
        identity: ``run_identity`` of the run to resume.
        weights: number of weights that this run trains.

    Raises:
        CheckpointRejected: the checkpoint is damaged or belongs to another run.
    """
    try:
        tensors, metadata = decode(data)
        found = metadata.get("format")
        if found != FORMAT:
            raise CheckpointRejected(f"the checkpoint has format {found!r}, not {FORMAT!r}")
        if metadata["sha256"] != _digest(metadata["run"], tensors, data):
            raise CheckpointRejected("the checkpoint is damaged: its checksum does not match")
        content = json.loads(metadata["run"])
        _compare(content["identity"], json.loads(json.dumps(identity)))
        step, loss_scale = int(content["step"]), dict(content["loss_scale"])
        optimizer = {
            name.removeprefix(_OPTIMIZER): tensor
            for name, tensor in tensors.items()
            if name.startswith(_OPTIMIZER)
        }
        # Some optimizers have no state before the first step, or, with loss scaling, before the
        # first step that is not skipped. Later, an optimizer without its state would start afresh.
        if step > 0 and not loss_scale and not optimizer:
            raise ValueError("the optimizer's state is missing")
        return RunState(
            step=step,
            weights=_tensor(tensors, "weights", (weights,)),
            optimizer=OptimizerState(optimizer, content["optimizer"]),
            sums=_tensor(tensors, "sums", (3,)),
            history=tuple(_record(values) for values in content["history"]),
            baseline=_record(content["before"]) if content["before"] else None,
            rollbacks=int(content["rollbacks"]["count"]),
            memory=MemoryPlan(**content["memory"]),
            loss_scale=loss_scale,
        )
    except (TensorFileDamaged, KeyError, TypeError, ValueError) as error:
        raise CheckpointRejected(f"the checkpoint is damaged: {error}") from error


def _record(values: dict[str, Any]) -> EpochRecord:
    return EpochRecord(**{**values, "prediction_losses": tuple(values["prediction_losses"])})


def _digest(run: str, tensors: Mapping[str, torch.Tensor], file: bytes) -> str:
    """Hash of a checkpoint's whole content; safetensors itself detects only a wrong length."""
    layout = sorted((name, str(t.dtype), tuple(t.shape)) for name, t in tensors.items())
    return hashlib.sha256(run.encode() + json.dumps(layout).encode() + body_of(file)).hexdigest()


def _tensor(
    tensors: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]
) -> torch.Tensor:
    tensor = tensors[name]
    if tensor.shape != shape or tensor.dtype != torch.float32:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not float32 {shape}")
    return tensor


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for part in ("base model", "network_weights", "images", "image sizes", "captions"):
        # A checkpoint of a version without ``network_weights`` has none.
        if found.get(part) != wanted[part]:
            raise CheckpointRejected(f"the checkpoint belongs to another run: other {part}")
    # Parameters that the checkpoint's version did not have yet take their defaults.
    was, now = (_DEFAULTS | run["parameters"] for run in (found, wanted))
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            raise CheckpointRejected(
                f"the checkpoint belongs to another run: {name} was {was.get(name)!r}, "
                f"now it is {now.get(name)!r}"
            )


def _hash(items: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()
