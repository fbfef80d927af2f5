"""Plans and runs for the trainer's tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.lora_layers import PackedLora, lora_installed
from adapters.diffusion.optimizer import copy_state
from adapters.diffusion.session import DiffusionSession
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.opening import open_image
from adapters.images.prepare import prepare
from application.ports import TrainingSession
from domain.image import TrainingImage
from domain.loss_curve import EpochRecord
from domain.parameters import TrainingParameters
from domain.progress import StepReport
from domain.training_plan import TrainingPlan

needs_prodigy = pytest.mark.skipif(
    find_spec("prodigyopt") is None,
    reason="waits for prodigyopt: pip install 'style-trainer[prodigy]'",
)
EVERY_OPTION: dict[str, Any] = {
    "random_flip": True,
    "caption_dropout": 0.3,
    "noise_offset": 0.1,
    "snr_gamma": 5.0,
    "trigger_word": "inkwash",
}


def read_images(paths: Sequence[Path]) -> tuple[TrainingImage, ...]:
    """Images as the use case passes them to the trainer, with the captions beside them."""
    return tuple(
        TrainingImage(
            path.name,
            path.read_bytes(),
            prepare(open_image(path.read_bytes()), 512).facts,
            path.with_suffix(".txt").read_text(encoding="utf-8"),
        )
        for path in paths
    )


def plan_of(
    images: Sequence[TrainingImage], tags: tuple[str, ...] = ("ink", "wash"), **parameters: Any
) -> TrainingPlan:
    """A short run at 64 px that changes the weights visibly. It measures nothing by default: a
    measurement takes as long as eight steps."""
    values: dict[str, Any] = {"epochs": 2, "resolution": 64, "learning_rate": 1e-2, "rank": 4}
    values |= {"validation_epochs": 0, **parameters}
    return TrainingPlan(
        style_id=7,
        images=tuple(images),
        tags=tags,
        parameters=TrainingParameters(**values),
    )


@dataclass(frozen=True)
class Outcome:
    """Results of a run."""

    weights: bytes
    checkpoint: bytes
    history: Sequence[EpochRecord]


def run(
    trainer: DiffusionTrainer,
    plan: TrainingPlan,
    *,
    resume: bytes | None = None,
    steps: int | None = None,
) -> Outcome:
    """Run a plan to its end, or for a number of steps."""
    with trainer.open(plan, resume) as session:
        if steps is None:
            return finish(session)
        for _ in range(steps):
            session.advance()
        return outcome_of(session)


def finish(session: TrainingSession) -> Outcome:
    """Run all remaining steps."""
    drive(session)
    return outcome_of(session)


def outcome_of(session: TrainingSession) -> Outcome:
    return Outcome(session.weights(), session.checkpoint().data, session.history)


def limit_memory(
    monkeypatch: pytest.MonkeyPatch,
    unet: UNet2DConditionModel,
    most: int,
    *,
    unless_recomputing: bool = False,
) -> list[int]:
    """Let passes of more than so many images run out of memory, after their forward pass. Returns
    the sizes of the passes that ran, filled from then on."""
    forward, sizes = type(unet).forward, []

    def limited(sample: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        result = forward(unet, sample, *arguments, **keywords)
        if torch.is_grad_enabled():
            recomputing = unless_recomputing and unet.is_gradient_checkpointing
            if len(sample) > most and not recomputing:
                raise torch.OutOfMemoryError("CUDA out of memory")
            sizes.append(len(sample))
        return result

    monkeypatch.setattr(unet, "forward", limited)
    return sizes


def drive(session: TrainingSession) -> list[StepReport]:
    """Run all remaining steps."""
    reports = []
    while not session.finished:
        reports.append(session.advance())
    return reports


def predict(unet: UNet2DConditionModel, *, gradient: bool = False) -> torch.Tensor:
    """The UNet's prediction for one fixed noise."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    states = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator)
    with torch.set_grad_enabled(gradient):
        return unet(latents, torch.tensor([300]), encoder_hidden_states=states).sample


def weights_of(session: TrainingSession) -> torch.Tensor:
    """The session's own weights, to inspect or to corrupt."""
    assert isinstance(session, DiffusionSession)
    return session.lora.weights.data


@contextmanager
def shown(session: TrainingSession) -> Iterator[None]:
    """In the with-block, the base's models are those of the session's style."""
    assert isinstance(session, DiffusionSession)
    lora = session.model.lora
    with lora.showing(lora.slot(session.slot)):
        yield


def gradient_of(session: TrainingSession) -> torch.Tensor:
    """A tenth of the first step's clipped gradient: AdamW's first moment after that step."""
    assert isinstance(session, DiffusionSession)
    return copy_state(session.optimizer).tensors["exp_avg"]


def by_layer(session: TrainingSession) -> torch.Tensor:
    """A copy of the weights, layer by layer."""
    assert isinstance(session, DiffusionSession)
    layers = [*session.lora.unet.values(), *session.lora.text_encoder.values()]
    return torch.cat([m.flatten() for own in layers for m in (own.down, own.up)])


@contextmanager
def lora_on(
    base: BaseModel,
    unet: UNet2DConditionModel | None = None,
    *,
    slots: int = 1,
    merged: bool = False,
    **parameters: Any,
) -> Iterator[PackedLora]:
    """In the with-block, the base carries LoRA layers with those parameters."""
    requested = TrainingParameters(**{"epochs": 1, "resolution": 64, "rank": 4, **parameters})
    unet = unet or base.unet
    text_encoder = base.text_encoder if requested.train_text_encoder else None
    lora = PackedLora(
        unet,
        text_encoder,
        requested,
        slots=slots,
        device=unet.device,
        dtype=unet.dtype,
        merged=merged,
    )
    with lora_installed(unet, text_encoder, lora):
        yield lora
