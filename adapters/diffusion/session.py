"""One run of the trainer, a step at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.checkpoint import (
    RunState,
    decode_checkpoint,
    encode_checkpoint,
    run_identity,
)
from adapters.diffusion.data.feed import Feed
from adapters.diffusion.data.preparation import PreparedData
from adapters.diffusion.data.rng import steps_per_epoch
from adapters.diffusion.data.step_inputs import StepInputs
from adapters.diffusion.data.text_states import TextStates
from adapters.diffusion.evaluation import Evaluation, held_out_positions, trained_buckets
from adapters.diffusion.failures import (
    broken_device_breaks_the_trainer,
    gpu_oom,
    is_out_of_memory,
    loss_diverged,
    with_room,
)
from adapters.diffusion.lora.adapters import Adapters, dropout_draws
from adapters.diffusion.lora_files.export import RunFacts, encode_trained
from adapters.diffusion.memory_use import peak_bytes
from adapters.diffusion.preview import PreviewRequest, draw_previews, encoded_anew
from adapters.diffusion.recovery import Recovery
from adapters.diffusion.step.learning_rate import learning_rate_of
from adapters.diffusion.step.loss import objective_of
from adapters.diffusion.step.optimizer import OptimizerStateInvalid
from adapters.diffusion.step.passes import Passes
from adapters.diffusion.step.replay import Recorder, Replay
from adapters.diffusion.step.steps import Place, Steps
from adapters.diffusion.step.thrift import Thrift
from adapters.diffusion.step.update import StepReadings, Update
from adapters.diffusion.strategy import PLAIN, Strategy
from application.ports import (
    Checkpoint,
    CheckpointRejected,
    EpochRecord,
    Preview,
    StepReport,
    TrainingPlan,
)
from domain.image import groups_of_alike

log = logging.getLogger(__name__)

_MEANT_TO_MOVE = 0.01
"""Share of the peak learning rate from which a step has to move some weight."""


class DiffusionSession:
    """Where a run stands: steps done, matrices, optimizer, notes of the epoch, history."""

    def __init__(
        self,
        *,
        base: BaseModel,
        plan: TrainingPlan,
        material: PreparedData,
        adapters: Adapters,
        device: torch.device,
        strategy: Strategy = PLAIN,
        refresh: Callable[[], None] | None = None,
        recorder: Recorder | None = None,
        text_states: TextStates | None = None,
    ) -> None:
        self._base = base
        self._plan = plan
        dataset = material.dataset
        self._captions = material.captions
        self._dataset = dataset
        self._adapters = adapters
        self._previews = material.previews
        self._device = device
        parameters = plan.parameters
        held_out = held_out_positions(
            groups_of_alike(plan.images), parameters.validation_split, parameters.seed
        )
        self._buckets = trained_buckets(dataset.buckets, held_out)
        self._epoch_steps = steps_per_epoch(list(self._buckets.values()), parameters.batch_size)
        self._learning_rate = learning_rate_of(parameters, self.total_steps)
        objective = objective_of(base.noise_schedule, parameters.snr_gamma, device)
        self._evaluation = Evaluation(
            *(base.unet, objective, dataset, held_out, parameters.seed, device, text_states),
            recorder=recorder,
        )
        self._update = Update(
            adapters.flat,
            parameters,
            loss_scaling=strategy.loss_scaling,
            text_weights=adapters.text_weights,
        )
        passes = Passes(
            base.unet,
            objective,
            dataset,
            scaled=self._update.scaled,
            conditioning=text_states,
            refresh=refresh,
            channels_last=strategy.channels_last,
        )
        place = Place(device, base.unet, passes, Replay(recorder))
        self._steps = Steps(place, self._update)
        self._step = 0
        self._history: list[EpochRecord] = []
        self._recovery = Recovery()
        self._thrift = Thrift(parameters.batch_size)
        schedule_length = base.noise_schedule.config.num_train_timesteps
        buckets = list(self._buckets.values())
        self._feed = Feed(parameters, dataset, buckets, self._rate, schedule_length, device)
        self._good = self._state().copy()

    @property
    def total_steps(self) -> int:
        """Steps in the whole run."""
        return self._plan.parameters.epochs * self._epoch_steps

    @property
    def finished(self) -> bool:
        """True when no step is left."""
        return self._step >= self.total_steps

    @property
    def history(self) -> Sequence[EpochRecord]:
        """Every finished epoch of the whole run."""
        return tuple(self._history)

    @property
    def peak_memory(self) -> int:
        """Most bytes held so far: on a GPU by the run's tensors, else by the process."""
        return peak_bytes(self._device)

    @broken_device_breaks_the_trainer()
    def advance(self) -> StepReport:
        """Run the next step. The last one of an epoch may lead back to where the run was well.

        Raises:
            TrainingFailed: GPU_OOM; at the end of an epoch LOSS_DIVERGED.
            TrainerBroken: as of every call that asks the device.
        """
        if self.finished:
            raise RuntimeError("the run is finished")
        self.run_step()
        return self.count_step()

    def run_step(self) -> None:
        """Train on the next step's batch, with less memory where there is not enough.

        Raises:
            TrainingFailed: GPU_OOM.
        """
        inputs = self.next_inputs()
        while not self._attempt(inputs):
            self._save_memory(inputs.count)

    @property
    def passes(self) -> Passes:
        """What finds the gradient, for whoever runs the steps in the session's place."""
        return self._steps.place.passes

    @property
    def update(self) -> Update:
        """What follows the gradient, for the same."""
        return self._update

    def next_inputs(self) -> StepInputs:
        """The next step's batch, for the same."""
        return self._feed.inputs(self._step)

    def draw_ahead(self) -> None:
        """Draw for the step after the next, while the device is at work on that, for the same."""
        if self._step + 1 < self.total_steps:
            self._feed.prepare(self._step + 1)

    def count_step(self) -> StepReport:
        """The next step has been run: go on behind it.

        Raises:
            TrainingFailed: at the end of an epoch LOSS_DIVERGED.
        """
        self._step += 1
        if not self.finished:
            self._feed.prepare(self._step)  # before anything waits for the device
        epoch, into = divmod(self._step, self._epoch_steps)
        if into:
            return StepReport(epoch, self._step, epoch_finished=False)
        readings = self._update.read(self._good.weights)
        if not readings.finite:
            self._recover(epoch)
            return StepReport(self._step // self._epoch_steps, self._step, epoch_finished=False)
        self._close_epoch(epoch, readings)
        return StepReport(epoch, self._step, epoch_finished=True)

    @broken_device_breaks_the_trainer()
    def checkpoint(self) -> Checkpoint:
        """The run as it stands between two steps; where it was well, if it is not well now."""
        if self._update.read(self._good.weights).finite:
            self._good = self._state().copy()
        state = self._good
        data = encode_checkpoint(state, self._identity())
        return Checkpoint(state.step // self._epoch_steps, state.step, data)

    def resume(self, data: bytes) -> None:
        """Go to where ``data`` was taken.

        Raises:
            CheckpointRejected: it is damaged, or another run's.
        """
        state = decode_checkpoint(data, self._identity(), self._adapters.flat.numel())
        try:
            self._go_to(state)
        except OptimizerStateInvalid as error:
            raise CheckpointRejected(f"the checkpoint is damaged: {error}") from error
        self._recovery = state.recovery
        self._apply(state.thrift)
        self._good = self._state().copy()

    @broken_device_breaks_the_trainer()
    def weights(self) -> bytes:
        """The adapters as they stand, as a file for other programs."""
        facts = RunFacts(
            base_name=self._base.name,
            prediction_type=self._base.prediction_type,
            captions=self._captions,
            bucket_sizes={size: len(bucket) for size, bucket in self._buckets.items()},
            steps=self._step,
            steps_per_epoch=self._epoch_steps,
        )
        return encode_trained(self._adapters, self._plan, facts)

    @broken_device_breaks_the_trainer()
    def previews(self, *, adapted: bool) -> tuple[Preview, ...]:
        """Images from fixed prompts and seeds, with the adapters or without."""
        return self._draw(self._previews, adapted=adapted)

    def close(self) -> None:
        """Let go of everything on the device, whoever still holds the session."""
        self._steps.place.close()
        self._evaluation.replay.forget()
        del self._dataset, self._adapters, self._update, self._steps, self._previews
        del self._feed, self._good, self._evaluation

    def _draw(self, request: PreviewRequest, *, adapted: bool) -> tuple[Preview, ...]:
        def draw() -> tuple[Preview, ...]:
            as_now = request
            if self._adapters.of_text:
                as_now = encoded_anew(self._base, request, self._device)
            return draw_previews(self._base, as_now, self._device)

        with nullcontext() if adapted else self._adapters.switched_off():
            return with_room(draw, self._make_room)

    def _make_room(self) -> bool:
        """Let go of what can be made again; whether there was anything."""
        given_back = [replay.make_room() for replay in self._replays]
        return any(given_back)

    @property
    def _replays(self) -> list[Replay[Any]]:
        return [self._evaluation.replay, self._steps.place.replay]

    def _attempt(self, inputs: StepInputs) -> bool:
        """Run a step. False when memory did not suffice; nothing holds its tensors then."""
        try:
            with dropout_draws(self._plan.parameters, self._step, self._device):
                self._steps.run(inputs, self._thrift.micro_batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _save_memory(self, count: int) -> None:
        """Get by with less from here on.

        Raises:
            TrainingFailed: GPU_OOM, when there is no less.
        """
        self._steps.discard_gradient()
        if self._measures_without_recordings():
            return
        tighter = self._thrift.tighter(count)
        if tighter is None:
            if not self._make_room():  # of those who train beside it
                raise gpu_oom()
            return
        log.warning("step %d: out of memory, going on with %s", self._step + 1, tighter)
        self._apply(tighter)

    def _measures_without_recordings(self) -> bool:
        """From here on; whether there were any, whose memory the steps can have now."""
        given_back = self._evaluation.replay.make_room()
        self._evaluation.replay.stop("steps need the memory")
        return given_back

    def _apply(self, thrift: Thrift) -> None:
        self._thrift = thrift
        for replay in self._replays:
            replay.make_room()
        if thrift.checkpointing:
            self._steps.place.recompute()

    def _recover(self, epoch: int) -> None:
        """Go back to where the run was well, and on with half the learning rate.

        Raises:
            TrainingFailed: LOSS_DIVERGED, when that has been tried often enough.
        """
        recovery = self._recovery.next()
        if recovery is None:
            raise loss_diverged(epoch)
        self._recovery = recovery
        self._go_to(self._good)
        log.warning(
            "epoch %d: loss or gradient is not a number; back to step %d with %g of the "
            "learning rate (recovery %d)",
            *(epoch, self._step, recovery.factor, recovery.count),
        )
        # To fall back here again must not undo that.
        self._good = self._state().copy()

    def _close_epoch(self, epoch: int, readings: StepReadings) -> EpochRecord:
        evaluation, validation = self._measured(epoch)
        record = EpochRecord(
            epoch=epoch,
            loss=readings.loss / sum(len(bucket) for bucket in self._buckets.values()),
            learning_rate=self._rate(self._step - 1),
            evaluation_loss=evaluation,
            validation_loss=validation,
            gradient_norm=readings.gradient_norm / self._epoch_steps,
            largest_gradient_norm=readings.largest_gradient_norm,
            stalled=self._stalled(readings),
        )
        if record.stalled and not (self._history and self._history[-1].stalled):
            log.warning(
                "epoch %d: the training stands still (gradient norm %g, no weight moved further "
                "than %g)",
                *(epoch, readings.largest_gradient_norm, readings.moved),
            )
        self._history.append(record)
        self._update.notes.zero_()
        self._good = self._state().copy()
        return record

    def _stalled(self, readings: StepReadings) -> bool:
        if readings.moved and readings.largest_gradient_norm:
            return False
        least = _MEANT_TO_MOVE * self._plan.parameters.learning_rate
        steps = range(self._step - self._epoch_steps, self._step)
        return any(self._learning_rate(step) >= least for step in steps)

    def _rate(self, step: int) -> float:
        return self._learning_rate(step) * self._recovery.factor

    def _state(self) -> RunState:
        return RunState(
            step=self._step,
            weights=self._adapters.flat,
            optimizer=self._update.optimizer_state,
            notes=self._update.notes,
            history=self._history,
            recovery=self._recovery,
            thrift=self._thrift,
            loss_scale=self._update.loss_scale,
        )

    def _go_to(self, state: RunState) -> None:
        self._adapters.flat.data.copy_(state.weights)
        self._update.restore(state.optimizer, state.notes, state.loss_scale)
        self._step = state.step
        self._history = list(state.history)
        self._feed.forget()

    def _measured(self, epoch: int) -> tuple[float | None, float | None]:
        """The epoch's losses over fixed noises, of images trained on and held out."""
        every = self._plan.parameters.validation_epochs
        if not every or (epoch % every and epoch != self._plan.parameters.epochs):
            return None, None
        replay = self._evaluation.replay
        recorded = replay.recordings is not None
        found = with_room(
            lambda: (self._evaluation.on_trained(), self._evaluation.on_held_out()),
            self._make_room,
        )
        if recorded and replay.recordings is None:
            # What a recording had taken before it failed stays in the pool that steps record in.
            self._make_room()
        return found

    def _identity(self) -> dict[str, object]:
        sizes = [image.size for image in self._dataset.images]
        return run_identity(self._plan, self._captions, sizes, self._base.fingerprint)
