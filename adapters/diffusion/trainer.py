"""The Trainer port on diffusers: one base model, and one run after another or several at once."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import torch
from PIL import Image

from adapters.common.device_memory import oom_fails_the_run
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.preparation import prepare
from adapters.diffusion.data_parallel import Rank, StartRanks
from adapters.diffusion.device_thread import MAX_WAIT, DeviceThread
from adapters.diffusion.execution import ExecutionOptions, choose_execution, describe
from adapters.diffusion.fused.blocks import with_fused_blocks
from adapters.diffusion.oom import retry_after_freeing
from adapters.diffusion.optimizer_libraries import require_optimizer
from adapters.diffusion.preview import STEPS
from adapters.diffusion.session import DiffusionSession, advance_runs
from adapters.diffusion.training_model import TrainingModel, training_model
from adapters.lora_files.files import decode_lora, encode_lora
from adapters.lora_files.lora_formats import LoraFormat
from adapters.lora_files.peft_format import PEFT_CONFIG, PEFT_WEIGHTS
from application.ports import TrainingSession
from domain.parameters import LoraTargets, OptimizerName, TrainingParameters
from domain.progress import StepReport
from domain.report import BaseFacts
from domain.training_plan import TrainingPlan

log = logging.getLogger(__name__)


class DiffusionTrainer:
    """Trains styles on one device. The base model stays loaded and unchanged between runs.

    Args:
        base: the base model; its UNet is moved to ``device`` if needed.
        decode: converts an image file's bytes to an upright RGB image.
        device: ``cpu`` or ``cuda``.
        execution: how steps are run; None for the fastest way on the device.
        slots: maximum number of open runs that share passes.
        max_wait: maximum number of seconds that a short step waits for the runs of the last one.
        start_ranks: starts the other processes of a run on several devices, as
            ``start_ranks`` does. Runs with one image per step, or dropout, do not use it.
        preview_steps: denoising steps of a preview.
    """

    def __init__(
        self,
        base: BaseModel,
        decode: Callable[[bytes], Image.Image],
        device: torch.device | str = "cpu",
        *,
        execution: ExecutionOptions | None = None,
        slots: int = 1,
        max_wait: float = MAX_WAIT,
        start_ranks: StartRanks | None = None,
        preview_steps: int = STEPS,
    ) -> None:
        self._decode = decode
        self._device = torch.device(device)
        self._execution = execution or choose_execution(self._device)
        self._base = _built_for(base, self._device, self._execution)
        self._slots = slots
        self._start_ranks = start_ranks
        self._preview_steps = preview_steps
        self._thread: DeviceThread[DiffusionSession, StepReport] = DeviceThread(
            advance_runs, max_wait
        )
        # Changed by the device's thread only, from here on.
        self.model: TrainingModel | None = None
        """The model of the open runs; None if no run is open."""
        self._close_model = ExitStack()
        log.info("device %s: %s", self._device, describe(self._execution))

    @property
    def base(self) -> BaseFacts:
        """The base model that the styles are trained for."""
        return BaseFacts(self._base.name, self._base.is_sd15)

    @property
    def native_resolution(self) -> int:
        """Side in pixels of the images that the base model was trained on: 512 for SD 1.5."""
        return self._base.native_resolution

    def batch_key(self, parameters: TrainingParameters) -> Hashable | None:
        """Runs with equal keys can share passes; a run whose key is None trains alone.

        Images, captions, seeds, learning rates, epochs and loss options may differ.
        """
        plain = (
            parameters.optimizer == OptimizerName.ADAMW
            and parameters.lora_targets != LoraTargets.CONVOLUTIONS
            and not parameters.use_dora
            and not parameters.train_text_encoder
            and not parameters.lora_dropout
        )
        if self._slots == 1 or not plain:
            return None
        return (
            parameters.rank,
            parameters.lora_scale,
            str(parameters.lora_targets),
            parameters.max_token_length,
        )

    def peft_files(self, weights: bytes) -> Mapping[str, bytes]:
        """PEFT's folder for the UNet: its weights, then its configuration."""
        files = encode_lora(*decode_lora(weights), LoraFormat.PEFT, "")
        return {name: files[name] for name in (PEFT_WEIGHTS, PEFT_CONFIG)}

    @contextmanager
    def open(self, plan: TrainingPlan, resume: bytes | None) -> Iterator[TrainingSession]:
        """Set up a run, from the start or from a checkpoint's data.

        Compatible runs share the device, up to the number of slots, each in its own thread. Each
        gives the same result as alone, within rounding.
        """
        parameters = plan.parameters
        require_optimizer(parameters.optimizer)
        shared = self._start_ranks and parameters.batch_size > 1 and not parameters.lora_dropout
        ranks = self._start_ranks(plan, resume) if self._start_ranks and shared else nullcontext()
        with ranks as rank, self._thread.used():
            session, closing = self._thread.call(lambda: self._start(plan, resume, rank))
            try:
                yield session
            finally:
                self._thread.remove_run(session)
                self._thread.call(closing.close)

    def _start(
        self, plan: TrainingPlan, resume: bytes | None, rank: Rank | None
    ) -> tuple[DiffusionSession, ExitStack]:
        """A session, and the stack that frees all of it."""
        with ExitStack() as stack:
            model = self._model_for(plan.parameters)
            slot = model.free_slots.pop(0)
            stack.callback(self._free_slot, model, slot)
            data = retry_after_freeing(
                model,
                lambda: prepare(self._base, plan, self._decode, self._device, self._preview_steps),
            )
            torch.cuda.empty_cache()  # encoding uses blocks of other sizes than steps do
            with oom_fails_the_run(retryable=model.runs > 1):
                session = DiffusionSession(self._base, plan, data, model, slot, self._thread)
                stack.callback(session.close)
                if resume is None:
                    session.start()
                else:
                    session.resume(resume)
            if rank is not None:
                rank.join(self._device)
                model.distributed = rank
                log.info("each step's images are split among %d devices", rank.count)
            if model.runs > 1:
                log.info("%d runs train together", model.runs)
            self._thread.add_run(session)
            return session, stack.pop_all()

    def _model_for(self, parameters: TrainingParameters) -> TrainingModel:
        """The open model if the run can join it, or a new one if no run is open."""
        key = self.batch_key(parameters)
        if self.model is None:
            if self._device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self._device)
            with oom_fails_the_run():
                slots = self._slots if key is not None else 1
                opening = training_model(
                    self._base, parameters, self._device, self._execution, slots
                )
                self.model = self._close_model.enter_context(opening)
        elif key is None or key != self.batch_key(self.model.parameters):
            raise RuntimeError("the open runs cannot train together with this one")
        elif not self.model.free_slots:
            raise RuntimeError(f"all {self._slots} slots of the trainer are taken")
        return self.model

    def _free_slot(self, model: TrainingModel, slot: int) -> None:
        model.free_slots.append(slot)
        if model.runs:
            return
        self.model = None
        self._close_model.close()
        gc.collect()
        torch.cuda.empty_cache()


def _built_for(base: BaseModel, device: torch.device, execution: ExecutionOptions) -> BaseModel:
    """The base with its UNet on the device, in the execution's precision, layout and blocks."""
    layout = torch.channels_last if execution.channels_last else torch.contiguous_format
    # diffusers' own ``to`` warns about modules to be kept in float32 even if there are none.
    torch.nn.Module.to(base.unet, device=device, dtype=execution.dtype)
    torch.nn.Module.to(base.unet, memory_format=layout)  # type: ignore[call-overload] # untyped
    return replace(base, unet=with_fused_blocks(base.unet)) if execution.fused else base
