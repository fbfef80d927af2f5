"""The Trainer port on diffusers and PEFT: one base model, run after run or several together."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from PIL import Image
from transformers import CLIPTextModel

from adapters.diffusion.base.model import BaseModel, on_device
from adapters.diffusion.data.preparation import PreparedData, prepare
from adapters.diffusion.data.text_states import TextStates
from adapters.diffusion.failures import (
    broken_device_breaks_the_trainer,
    out_of_memory_is_a_failure,
    with_room,
)
from adapters.diffusion.lora.adapted_denoiser import (
    adapted_denoiser,
    as_the_strategy_fuses,
    place_denoiser,
)
from adapters.diffusion.lora_files.files import decode_lora, encode_lora
from adapters.diffusion.lora_files.lora_formats import LoraFormat
from adapters.diffusion.lora_files.peft_format import PEFT_CONFIG, PEFT_WEIGHTS
from adapters.diffusion.memory_use import forget_peak
from adapters.diffusion.session import DiffusionSession
from adapters.diffusion.step.optimizer import require_optimizer, stays_on_device
from adapters.diffusion.step.replay import CudaRecorder, Recorder
from adapters.diffusion.strategy import Strategy, choose_strategy, describe
from adapters.diffusion.together.ensemble import Ensemble, MemberSession, kind_of
from adapters.diffusion.together.rendezvous import LEAST_PATIENCE
from adapters.diffusion.together.stacked import stacked
from adapters.diffusion.together.turns import Turns
from application.ports import BaseFacts, TrainingPlan, TrainingSession
from domain.parameters import TrainingParameters

log = logging.getLogger(__name__)


class DiffusionTrainer:
    """Trains styles on one device. The base model stays loaded between runs, and unchanged.

    Args:
        base: its denoiser lies on ``device`` already, or is moved there.
        decode: an image file's bytes to an upright RGB image.
        device: ``cpu`` or ``cuda``.
        strategy: how steps are run; None for the fastest way that the device offers.
        recorder: what records steps where the strategy captures them; None for CUDA graphs.
        slots: how many runs of one kind may be open at a time.
        patience: seconds for which runs that share a pass wait for one another.
    """

    def __init__(
        self,
        base: BaseModel,
        decode: Callable[[bytes], Image.Image],
        device: torch.device | str = "cpu",
        *,
        strategy: Strategy | None = None,
        recorder: Callable[[], Recorder] | None = None,
        slots: int = 1,
        patience: float = LEAST_PATIENCE,
    ) -> None:
        self._base = base
        self._decode = decode
        self._device = torch.device(device)
        self._strategy = strategy or choose_strategy(self._device)
        self._recorder_given = recorder
        self._slots = slots
        self._patience = patience
        self._turn = Turns()
        self._ensemble: Ensemble | None = None
        self._busy = False
        place_denoiser(base.unet, self._device, self._strategy)
        log.info("training on %s: %s", self._device, describe(self._strategy))

    @property
    def base(self) -> BaseFacts:
        """What the styles are for."""
        return BaseFacts(self._base.name, self._base.is_sd15)

    @property
    def native_resolution(self) -> int:
        """Side in pixels that the base model was trained for: 512 for SD 1.5."""
        return self._base.native_resolution

    @property
    def together(self) -> int:
        """Runs in one pass now, at most: fewer than there are slots once memory has run out."""
        return 1 if self._ensemble is None else self._ensemble.together

    @property
    def recordings(self) -> int | None:
        """Passes recorded of the runs that train together; None where none are, or no longer."""
        return None if self._ensemble is None else self._ensemble.recordings

    def batch_key(self, parameters: TrainingParameters) -> Hashable | None:
        """As ``together.kind_of``; None for every run where there is one slot only."""
        return kind_of(parameters) if self._slots > 1 else None

    def in_folder(self, weights: bytes) -> Mapping[str, bytes]:
        """PEFT's folder for the U-Net: its weights, then its configuration."""
        files = encode_lora(*decode_lora(weights), LoraFormat.PEFT, "")
        return {name: files[name] for name in (PEFT_WEIGHTS, PEFT_CONFIG)}

    def open(
        self, plan: TrainingPlan, resume: bytes | None
    ) -> AbstractContextManager[TrainingSession]:
        """Set a run up, from nothing or from a checkpoint's data.

        Runs of one kind share the device, as many as there are slots, each in its own thread.

        Raises:
            CheckpointRejected: ``resume`` cannot be used for this plan.
            TrainingFailed: GPU_OOM; INVALID_TASK when the optimizer's library is not installed.
            TrainerBroken: the device answers no more.
        """
        require_optimizer(plan.parameters.optimizer)
        if self.batch_key(plan.parameters) is not None:
            return self._seated(plan, resume)
        return self._alone(plan, resume)

    @contextmanager
    def _alone(self, plan: TrainingPlan, resume: bytes | None) -> Iterator[TrainingSession]:
        parameters, strategy = plan.parameters, self._strategy
        with broken_device_breaks_the_trainer(), ExitStack() as stack:
            stack.enter_context(self._occupied())
            stack.enter_context(on_device(self._base.text_encoder, self._home_of_text(parameters)))
            text_encoder = self._text_encoder(parameters)
            adapters, refresh = stack.enter_context(
                adapted_denoiser(self._base.unet, parameters, strategy, text_encoder)
            )
            with out_of_memory_is_a_failure():
                material = self._prepare(plan)
                texts = None
                if parameters.train_text_encoder:
                    own = dict.fromkeys(["", *material.captions])
                    texts = TextStates(self._base, own, self._device)
                session = DiffusionSession(
                    base=self._base,
                    plan=plan,
                    material=material,
                    adapters=adapters,
                    device=self._device,
                    strategy=self._strategy,
                    text_states=texts,
                    refresh=refresh,
                    recorder=self._recorder(parameters),
                )
                stack.callback(session.close)
                if resume is not None:
                    session.resume(resume)
            yield session

    @contextmanager
    def _seated(self, plan: TrainingPlan, resume: bytes | None) -> Iterator[TrainingSession]:
        """A run among others of its kind; it ends within rounding where it would have alone."""
        with broken_device_breaks_the_trainer(), ExitStack() as stack:
            with self._turn:
                ensemble = stack.enter_context(self._company(plan.parameters))
                row = stack.enter_context(ensemble.slot())
                own = ensemble.stack.fresh(row, plan.parameters)
                with ensemble.sharing_memory(), out_of_memory_is_a_failure():
                    session = MemberSession(
                        ensemble,
                        row,
                        base=self._base,
                        plan=plan,
                        material=self._prepare_among(plan, ensemble),
                        adapters=own,
                        device=self._device,
                        strategy=self._strategy,
                    )
                    stack.callback(self._in_turn, session.close)
                    if resume is not None:
                        session.resume(resume)
                if ensemble.taken > 1:
                    log.info("%d runs train together", ensemble.taken)
            yield session

    @contextmanager
    def _company(self, parameters: TrainingParameters) -> Iterator[Ensemble]:
        """The ensemble of those who train now; the first one opens it, the last one closes it.

        Raises:
            RuntimeError: they are of another kind.
            TrainingFailed: GPU_OOM.
        """
        kind = kind_of(parameters)
        if self._ensemble is None:
            with ExitStack() as opening:
                unet, strategy = self._base.unet, self._strategy
                opening.enter_context(self._occupied())
                with out_of_memory_is_a_failure():
                    rows = opening.enter_context(
                        stacked(unet, parameters, self._slots, strategy.compute)
                    )
                    opening.enter_context(as_the_strategy_fuses(unet, strategy, rows.joined))
                recorder = self._recorder(parameters)
                self._ensemble = Ensemble(rows, recorder, self._turn, self._patience)
                self._kind, self._closing = kind, opening.pop_all()
        elif kind != self._kind:
            raise RuntimeError("the trainer has open runs of another kind")
        ensemble = self._ensemble
        try:
            yield ensemble
        finally:
            with self._turn:
                # Of two that leave at the same moment, both may find themselves the last one.
                if self._ensemble is ensemble and not ensemble.taken:
                    ensemble.close()
                    self._ensemble = None
                    self._closing.close()

    def _prepare_among(self, plan: TrainingPlan, ensemble: Ensemble) -> PreparedData:
        """Where the others have taken all the memory, they give some of it back."""
        return with_room(lambda: self._prepare(plan), ensemble.make_room)

    def _prepare(self, plan: TrainingPlan) -> PreparedData:
        material = prepare(self._base, plan, self._decode, self._device)
        # What encoding has taken is of other sizes than what steps will ask for.
        self._give_back_memory()
        return material

    def _in_turn(self, action: Callable[[], None]) -> None:
        with self._turn:
            action()

    @contextmanager
    def _occupied(self) -> Iterator[None]:
        """While open, nobody else opens anything; in the end the device's memory is free."""
        with self._turn:
            if self._busy:
                raise RuntimeError("one session at a time: the trainer has an open run")
            self._busy = True
        forget_peak(self._device)
        try:
            yield
        finally:
            self._busy = False
            gc.collect()
            self._give_back_memory()

    def _give_back_memory(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _recorder(self, parameters: TrainingParameters) -> Recorder | None:
        """Dropout is drawn anew for each step on the host, and so is what some optimizers ask;
        a text encoder makes its masks there: such steps are not recorded.
        """
        steady = stays_on_device(parameters.optimizer) and not parameters.lora_dropout
        if not (self._strategy.capture and steady) or parameters.train_text_encoder:
            return None
        return self._recorder_given() if self._recorder_given else CudaRecorder(self._device)

    def _text_encoder(self, parameters: TrainingParameters) -> CLIPTextModel | None:
        return self._base.text_encoder if parameters.train_text_encoder else None

    def _home_of_text(self, parameters: TrainingParameters) -> torch.device:
        """Where the text encoder lies during the run: it visits the device, or stays there."""
        here: torch.device = self._base.text_encoder.device
        return self._device if parameters.train_text_encoder else here
