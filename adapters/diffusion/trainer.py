"""The Trainer port on diffusers and PEFT: one base model, one run after another."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

from adapters.diffusion.base_model import BaseModel, placed
from adapters.diffusion.buckets import bucket_of
from adapters.diffusion.captions import caption_of
from adapters.diffusion.convolutions import as_products
from adapters.diffusion.dataset import Dataset, encode_dataset
from adapters.diffusion.failures import out_of_memory_is_a_failure
from adapters.diffusion.flat_path import flat_path_of, suits
from adapters.diffusion.lora import attached
from adapters.diffusion.memory_use import forget_peak
from adapters.diffusion.optimizer import require_optimizer, stays_on_device
from adapters.diffusion.preview import request_previews
from adapters.diffusion.replay import CudaRecorder, Recorder
from adapters.diffusion.session import DiffusionSession
from adapters.diffusion.stacked import stacked
from adapters.diffusion.strategy import Strategy, choose_strategy, describe
from adapters.diffusion.text_states import TextStates
from adapters.diffusion.together import JointSession, MemberSession, likeness
from application.ports import TrainingPlan, TrainingSession
from domain.parameters import TrainingParameters

log = logging.getLogger(__name__)


class DiffusionTrainer:
    """Trains styles on one device. The base model stays loaded between runs, and unchanged.

    Args:
        base: its denoiser lies on ``device`` already, or is moved there.
        decode: a picture file's bytes to an upright RGB picture.
        device: ``cpu`` or ``cuda``.
        strategy: how steps are run; None for the fastest way that the device offers.
        recorder: what records steps where the strategy captures them; None for CUDA graphs.
    """

    def __init__(
        self,
        base: BaseModel,
        decode: Callable[[bytes], Image.Image],
        device: torch.device | str = "cpu",
        *,
        strategy: Strategy | None = None,
        recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        self._base = base
        self._decode = decode
        self._device = torch.device(device)
        self._strategy = strategy or choose_strategy(
            self._device, max(base.unet.config.block_out_channels)
        )
        self._recorder = recorder or (lambda: CudaRecorder(self._device))
        self._busy = False
        place_denoiser(base.unet, self._device, self._strategy)
        log.info("training on %s: %s", self._device, describe(self._strategy))

    @property
    def native_resolution(self) -> int:
        """Side in pixels that the base model was trained for: 512 for SD 1.5."""
        return self._base.native_resolution

    @contextmanager
    def open(self, plan: TrainingPlan, resume: bytes | None) -> Iterator[TrainingSession]:
        """Set a run up, from nothing or from a checkpoint's data.

        Raises:
            CheckpointRejected: ``resume`` cannot be used for this plan.
            TrainingFailed: GPU_OOM; INVALID_TASK when the optimizer's library is not installed.
        """
        parameters = plan.parameters
        require_optimizer(parameters.optimizer)
        with (
            self._occupied(),
            self._convolutions(),
            placed(self._base.text_encoder, self._home_of_text(parameters)),
            attached(
                self._base.unet,
                rank=parameters.rank,
                alpha=parameters.network_alpha,
                seed=parameters.seed,
                targets=parameters.lora_targets,
                dropout=parameters.lora_dropout,
                rslora=parameters.use_rslora,
                dora=parameters.use_dora,
                text_encoder=self._text_encoder(parameters),
            ) as adapters,
            ExitStack() as stack,
        ):
            refresh = None
            if self._strategy.flat_path and suits(adapters, parameters.lora_dropout):
                path = flat_path_of(adapters, self._strategy.compute)
                refresh = stack.enter_context(path).refresh
            with out_of_memory_is_a_failure():
                parts = self._parts(plan)
                session = DiffusionSession(
                    **parts,
                    adapters=adapters,
                    text_states=self._text_states(parameters, parts["captions"]),
                    refresh=refresh,
                    recorder=self._recorder() if self._captures(parameters) else None,
                )
                stack.callback(session.close)
                if resume is not None:
                    session.resume(resume)
            yield session

    @contextmanager
    def open_many(
        self, jobs: Sequence[tuple[TrainingPlan, bytes | None]]
    ) -> Iterator[JointSession]:
        """Set several runs up that train together, each from nothing or from a checkpoint.

        Each ends within rounding where it would have ended alone; checkpoints serve either way.

        Raises:
            ValueError: the plans cannot train together; ``together.likeness`` tells which can.
            CheckpointRejected, TrainingFailed: as ``open``, of any of them.
        """
        kinds = {likeness(plan.parameters) for plan, _ in jobs}
        if len(kinds) != 1 or None in kinds:
            raise ValueError("these plans cannot train together: their adapters are not alike")
        each = [plan.parameters for plan, _ in jobs]
        with (
            self._occupied(),
            self._convolutions(),
            stacked(self._base.unet, each, self._strategy.compute) as (weights, adapters),
            ExitStack() as stack,
        ):
            members = []
            with out_of_memory_is_a_failure():
                for style, ((plan, resume), own) in enumerate(zip(jobs, adapters, strict=True)):
                    member = MemberSession(weights, style, **self._parts(plan), adapters=own)
                    stack.callback(member.close)
                    members.append(member)
                    if resume is not None:
                        member.resume(resume)
            recorder = self._recorder() if self._strategy.capture else None
            joint = JointSession(members, weights, recorder)
            stack.callback(joint.close)
            yield joint

    @contextmanager
    def _occupied(self) -> Iterator[None]:
        """While open, nobody else opens anything; in the end the device's memory is free."""
        if self._busy:
            raise RuntimeError("the trainer runs one session at a time")
        self._busy = True
        forget_peak(self._device)
        try:
            yield
        finally:
            self._busy = False
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _convolutions(self) -> AbstractContextManager[None]:
        return as_products(self._base.unet) if self._strategy.products else nullcontext()

    def _parts(self, plan: TrainingPlan) -> dict[str, Any]:
        """What a session needs besides its adapters."""
        parameters = plan.parameters
        captions = [
            caption_of(picture, plan.tags, parameters.trigger_word) for picture in plan.pictures
        ]
        return {
            "base": self._base,
            "plan": plan,
            "captions": captions,
            "dataset": self._encode(plan, captions),
            "previews": request_previews(self._base, parameters, captions, self._device),
            "device": self._device,
            "strategy": self._strategy,
        }

    def _captures(self, parameters: TrainingParameters) -> bool:
        """Dropout is drawn anew for each step on the host, and so is what some optimizers ask;
        a text encoder makes its masks there.
        """
        steady = stays_on_device(parameters.optimizer) and not parameters.lora_dropout
        return self._strategy.capture and steady and not parameters.train_text_encoder

    def _text_encoder(self, parameters: TrainingParameters) -> CLIPTextModel | None:
        return self._base.text_encoder if parameters.train_text_encoder else None

    def _home_of_text(self, parameters: TrainingParameters) -> torch.device:
        """Where the text encoder lies during the run: it visits the device, or stays there."""
        here: torch.device = self._base.text_encoder.device
        return self._device if parameters.train_text_encoder else here

    def _text_states(
        self, parameters: TrainingParameters, captions: list[str]
    ) -> TextStates | None:
        if not parameters.train_text_encoder:
            return None
        return TextStates(self._base, dict.fromkeys(["", *captions]), self._device)

    def _encode(self, plan: TrainingPlan, captions: list[str]) -> Dataset:
        resolution = plan.parameters.resolution
        decoded = (self._decode(picture.data) for picture in plan.pictures)
        sized = ((image, bucket_of(*image.size, resolution)) for image in decoded)
        return encode_dataset(
            self._base,
            sized,
            captions,
            mirrored=plan.parameters.random_flip,
            device=self._device,
        )


def place_denoiser(unet: UNet2DConditionModel, device: torch.device, strategy: Strategy) -> None:
    """Put the denoiser where and how the strategy wants it."""
    layout = torch.channels_last if strategy.channels_last else torch.contiguous_format
    # diffusers' own ``to`` warns of modules to be kept in float32 even where there are none.
    torch.nn.Module.to(unet, device=device, dtype=strategy.compute)
    torch.nn.Module.to(unet, memory_format=layout)  # type: ignore[call-overload]
