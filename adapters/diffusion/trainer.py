"""The Trainer port on diffusers and PEFT: one base model, one run after another."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from PIL import Image

from adapters.diffusion.base_model import BaseModel
from adapters.diffusion.buckets import bucket_of
from adapters.diffusion.captions import caption_of
from adapters.diffusion.dataset import Dataset, encode_dataset
from adapters.diffusion.failures import out_of_memory_is_a_failure
from adapters.diffusion.lora import attached
from adapters.diffusion.optimizer import require_optimizer
from adapters.diffusion.preview import request_previews
from adapters.diffusion.session import DiffusionSession
from application.ports import TrainingPlan, TrainingSession


class DiffusionTrainer:
    """Trains styles on one device. The base model stays loaded between runs, and unchanged.

    Args:
        base: its denoiser lies on ``device`` already, or is moved there.
        decode: a picture file's bytes to an upright RGB picture.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        base: BaseModel,
        decode: Callable[[bytes], Image.Image],
        device: torch.device | str = "cpu",
    ) -> None:
        self._base = base
        self._decode = decode
        self._device = torch.device(device)
        self._busy = False
        base.unet.to(self._device)

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
        if self._busy:
            raise RuntimeError("the trainer runs one session at a time")
        parameters = plan.parameters
        require_optimizer(parameters.optimizer)
        self._busy = True
        captions = [
            caption_of(picture, plan.tags, parameters.trigger_word) for picture in plan.pictures
        ]
        try:
            with attached(
                self._base.unet,
                rank=parameters.rank,
                alpha=parameters.network_alpha,
                seed=parameters.seed,
                targets=parameters.lora_targets,
                dropout=parameters.lora_dropout,
                rslora=parameters.use_rslora,
                dora=parameters.use_dora,
            ) as adapters:
                with out_of_memory_is_a_failure():
                    session = DiffusionSession(
                        base=self._base,
                        plan=plan,
                        captions=captions,
                        dataset=self._encode(plan, captions),
                        adapters=adapters,
                        previews=request_previews(self._base, parameters, captions, self._device),
                        device=self._device,
                    )
                    if resume is not None:
                        session.resume(resume)
                try:
                    yield session
                finally:
                    session.close()
        finally:
            self._busy = False
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

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
