"""One training run: its state, and the session port's methods."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from statistics import fmean

import torch

from adapters.common.device_memory import is_out_of_memory
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.checkpoint import (
    RunState,
    decode_checkpoint,
    encode_checkpoint,
    run_identity,
)
from adapters.diffusion.data.batch_prefetcher import BatchPrefetcher
from adapters.diffusion.data.preparation import PreparedData
from adapters.diffusion.data.rng import steps_per_epoch
from adapters.diffusion.data.text import tokens_of
from adapters.diffusion.device_thread import DeviceThread
from adapters.diffusion.evaluation import Evaluation, held_out_positions, trained_buckets
from adapters.diffusion.nan_rollback import MAX_ROLLBACKS, SLOWER, EpochReadings, diverged
from adapters.diffusion.objective import objective_of
from adapters.diffusion.oom import MemoryPlan, group_by_shape, reduce_memory, retry_after_freeing
from adapters.diffusion.optimizer import build_optimizer, copy_state, learning_rates, restore_state
from adapters.diffusion.preview import PreviewRequest, draw_previews, reencoded
from adapters.diffusion.style_measures import StyleAxis, encode_previews, faithfulness, style_axis
from adapters.diffusion.style_weights import load_initial_lora, weights_for_file
from adapters.diffusion.train_step import Batch, train_step
from adapters.diffusion.training_model import TrainingModel
from adapters.lora_files.trained_style import RunFacts, encode_trained
from domain.image import duplicate_groups
from domain.loss_curve import EpochRecord
from domain.progress import StepReport
from domain.results import Checkpoint, Preview, PreviewScores
from domain.training_plan import TrainingPlan

log = logging.getLogger(__name__)

_MIN_LR_SHARE = 0.01
"""Steps at this share of the peak learning rate, or above, must change some weight."""


class DiffusionSession:
    """A run between two steps: its weights, optimizer, sums over the epoch, and history.

    The run's own thread calls the port's methods. They submit their work to the device's thread,
    the only one that reads and writes everything else here.

    Args:
        slot: the run's row of the packed LoRA.
    """

    def __init__(
        self,
        base: BaseModel,
        plan: TrainingPlan,
        data: PreparedData,
        model: TrainingModel,
        slot: int,
        thread: DeviceThread[DiffusionSession, StepReport],
    ) -> None:
        self._base, self._plan, self._data = base, plan, data
        self.model, self.slot, self.thread = model, slot, thread
        self.parameters = parameters = plan.parameters
        dataset = data.dataset
        split = parameters.validation_split
        groups = duplicate_groups(plan.images) if split else ()
        held_out = held_out_positions(groups, split, parameters.seed)
        self._buckets = trained_buckets(dataset.buckets, held_out)
        buckets = list(self._buckets.values())
        self._epoch_steps = steps_per_epoch(buckets, parameters.batch_size)
        self.total_steps = parameters.epochs * self._epoch_steps
        self.schedule = learning_rates(parameters, self.total_steps)
        """The learning rate of each step, before rollbacks."""
        self.text_share = parameters.text_encoder_share if parameters.train_text_encoder else 1.0
        """The text encoder's learning rate as a factor on the UNet's."""

        self.lora = model.lora.new_style(slot, parameters.seed)
        self.optimizer = build_optimizer(self.lora.weights, parameters)
        scaling = model.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=scaling)
        self._sums = torch.zeros(3, device=model.device)
        self.epoch_sums = self._sums[:2]
        """Sums over the epoch's steps so far: losses of all images, and gradient norms."""
        self.largest_norm = self._sums[2]
        self.step = 0
        """Steps done."""
        self.memory = MemoryPlan(parameters.batch_size)
        self._rollbacks = 0
        self.history: tuple[EpochRecord, ...] = ()
        """Every finished epoch of the whole run."""
        self.baseline: EpochRecord | None = None
        """The base's losses over fixed noises, as epoch 0; None without evaluations."""

        conditioning = dataset.captions
        if parameters.train_text_encoder:
            tokens = tokens_of(base, dataset.texts, parameters.max_token_length)
            conditioning = tokens.to(model.device)
        objective = objective_of(base.noise_schedule, parameters.snr_gamma, model.device)
        row = model.lora.slot(slot)
        self.batches = BatchPrefetcher(parameters, dataset, buckets, objective, conditioning, row)
        self._evaluation = Evaluation(
            model, objective, dataset, held_out, conditioning, row, parameters.seed
        )
        self._last_good = self._state()
        self._base_previews: tuple[Preview, ...] = ()
        self._style_axis: StyleAxis | None = None
        self._style_step = 0
        """The step of the weights that ``restore`` loaded; 0 if it was not called."""

    @property
    def finished(self) -> bool:
        """True when no step is left."""
        return self.step >= self.total_steps

    @property
    def peak_memory(self) -> int:
        """Peak bytes so far: of tensors on a GPU, else of the process since its start."""
        if self.model.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.model.device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def advance(self) -> StepReport:
        """Train one step. At the end of an epoch the run may roll back to its last good state."""
        if self.finished:
            raise RuntimeError("the run is finished")
        try:
            report = self.thread.step(self)
        except BaseException:
            self.thread.remove_run(self)
            raise
        if self.finished:
            self.thread.remove_run(self)
        return report

    def checkpoint(self) -> Checkpoint:
        """The run's current state between two steps, or its last good state if it has diverged."""
        return self.thread.call(self._checkpoint)

    def weights(self) -> bytes:
        """The current LoRA, as a file for other programs."""
        return self.thread.call(self._encode_style)

    def restore(self, checkpoint: bytes) -> None:
        """After the last step, load the weights of an earlier checkpoint of this run."""
        self.thread.call(partial(self._restore, checkpoint))

    def previews(
        self, *, with_lora: bool, check: Callable[[], None] = lambda: None
    ) -> tuple[Preview, ...]:
        """Images from fixed prompts and seeds, with the LoRA or without. Between two images,
        other runs may train steps."""
        whole = self._data.previews
        if not with_lora and self._base_previews:
            return self._base_previews
        drawn: tuple[Preview, ...] = ()
        for request in (whole,) if self.model.slots == 1 else whole.each():
            drawn += self.thread.call(partial(self._draw, request, check, with_lora=with_lora))
        if not with_lora:
            self._base_previews = drawn
        return drawn

    def score_previews(
        self, previews: tuple[Preview, ...], check: Callable[[], None] = lambda: None
    ) -> PreviewScores:
        """Score previews of this run. The first call also draws the base's previews."""
        plain = self.previews(with_lora=False, check=check)
        return self.thread.call(partial(self._score_previews, plain, previews))

    # --- For the device's thread

    @property
    def lr_factor(self) -> float:
        """Factor on the learning rate, lowered by rollbacks."""
        return float(SLOWER**self._rollbacks)

    @property
    def reduced(self) -> bool:
        """Whether the memory plan is reduced, so that the run gets passes of its own."""
        return self.memory != MemoryPlan(self.parameters.batch_size)

    def next_batch(self) -> Batch:
        """The next step's batch. Its noise and timesteps depend on the seed and the step alone."""
        batch = self.batches.batch(self.step)
        if self.model.distributed is not None:
            batch = self.model.distributed.share(batch)
        if not self.scaler.is_enabled():
            return batch
        return replace(batch, loss_scales=self.scaler.scale(batch.loss_scales))

    def discard_gradient(self) -> None:
        """Clear the gradient of an aborted step."""
        self.optimizer.zero_grad(set_to_none=False)
        if self.scaler.is_enabled():
            # GradScaler raises an error on a second unscale before its step.
            self.scaler._per_optimizer_states.clear()

    def finish_step(self) -> StepReport:
        """Report the finished step. Within an epoch this does not wait for the device.

        Raises:
            TrainingFailed: LOSS_DIVERGED, at the end of an epoch.
        """
        epoch, into = divmod(self.step, self._epoch_steps)
        if into:
            return StepReport(epoch, self.step, epoch_finished=False)
        readings = self._read_epoch()
        if not readings.finite:
            self._roll_back(epoch)
            return StepReport(self.step // self._epoch_steps, self.step, epoch_finished=False)
        self._close_epoch(epoch, readings)
        return StepReport(epoch, self.step, epoch_finished=True)

    def start(self) -> None:
        """Measure the base before the first step, then load the LoRA that the run starts from."""
        if self.parameters.validation_epochs:
            baseline = self._measured(EpochRecord(epoch=0, loss=0.0, learning_rate=0.0))
            self.baseline = replace(baseline, loss=baseline.evaluation_loss or 0.0)
        if self._plan.initial is not None:
            load_initial_lora(self.lora, self._plan.initial.data)
        self._last_good = self._state()

    def resume(self, data: bytes) -> None:
        """Restore the state of a checkpoint.

        Raises:
            CheckpointRejected: the checkpoint is damaged or belongs to another run.
        """
        state = decode_checkpoint(data, self._identity(), self.lora.weights.numel())
        self._load_state(state)
        self._rollbacks, self.memory = state.rollbacks, state.memory
        self.baseline = state.baseline
        self._last_good = self._state()

    def measure(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Losses over fixed noises: of the training images, and of the held-out images."""
        graphs = self.model.evaluation_graphs
        recorded = graphs.size is not None
        losses = retry_after_freeing(self.model, self._evaluation.losses)
        if recorded and graphs.size is None:
            # Memory of a failed recording stays in the pool that steps record in.
            self.model.free_graphs()
        return losses

    def close(self) -> None:
        """Free everything on the device, even if the session is still referenced."""
        del self._data, self.batches, self._evaluation, self._last_good
        del self.lora, self.optimizer, self.scaler, self._sums, self.epoch_sums, self.largest_norm

    def _measured(self, record: EpochRecord) -> EpochRecord:
        """The record with the losses over fixed noises."""
        trained, held_out = self.measure()
        return replace(
            record,
            evaluation_loss=fmean(trained),
            validation_loss=fmean(held_out) if held_out else None,
            prediction_losses=held_out or trained,
        )

    def _restore(self, data: bytes) -> None:
        state = decode_checkpoint(data, self._identity(), self.lora.weights.numel())
        self.lora.weights.data.copy_(state.weights)
        self._style_step = state.step

    def _read_epoch(self) -> EpochReadings:
        """Wait for the device, and read the epoch's sums at once."""
        largest_change = (self.lora.weights.detach() - self._last_good.weights).abs().max()
        return EpochReadings(*torch.cat([self._sums, largest_change[None]]).tolist())

    def _checkpoint(self) -> Checkpoint:
        if self._read_epoch().finite:
            self._last_good = self._state()
        data = encode_checkpoint(self._last_good, self._identity())
        return Checkpoint(self._last_good.step // self._epoch_steps, self._last_good.step, data)

    def _encode_style(self) -> bytes:
        kind = type(self.optimizer)
        facts = RunFacts(
            base_name=self._base.name,
            prediction_type=self._base.prediction_type,
            captions=self._data.captions,
            optimizer=f"{kind.__module__}.{kind.__name__}",
            bucket_sizes={size: len(bucket) for size, bucket in self._buckets.items()},
            steps=self._style_step or self.step,
            steps_per_epoch=self._epoch_steps,
        )
        return encode_trained(weights_for_file(self.lora), self._plan, facts)

    def _draw(
        self, request: PreviewRequest, check: Callable[[], None], *, with_lora: bool
    ) -> tuple[Preview, ...]:
        def draw() -> tuple[Preview, ...]:
            style = self._style_active(request) if with_lora else nullcontext(request)
            with style as encoded:
                return draw_previews(self._base, encoded, self.model.device, check)

        return retry_after_freeing(self.model, draw)

    def _score_previews(
        self, plain: tuple[Preview, ...], previews: tuple[Preview, ...]
    ) -> PreviewScores:
        base, device = self._base, self.model.device

        def score() -> PreviewScores:
            if self._style_axis is None:
                statistics, _ = encode_previews(base, plain, device)
                self._style_axis = style_axis(self._data.statistics, statistics)
            statistics, latents = encode_previews(base, previews, device)
            with self._style_active(self._data.previews) as request:
                shown = faithfulness(base, latents, request, device)
            return PreviewScores(self._style_axis.closeness(statistics), shown)

        return retry_after_freeing(self.model, score)

    @contextmanager
    def _style_active(self, request: PreviewRequest) -> Iterator[PreviewRequest]:
        """In the with-block, the models have this style. Yields the request with its prompts as
        the style's text encoder encodes them."""
        with self.model.lora.showing(self.model.lora.slot(self.slot)):
            if self.model.text_encoder is not None:
                request = reencoded(self._base, request, self.model.device)
            yield request

    def _roll_back(self, epoch: int) -> None:
        if self._rollbacks == MAX_ROLLBACKS:
            raise diverged(epoch)
        self._rollbacks += 1
        self._load_state(self._last_good)
        log.warning(
            "epoch %d: loss, gradient or weights not finite; rolled back to step %d with %g of "
            "the learning rate (rollback %d)",
            *(epoch, self.step, self.lr_factor, self._rollbacks),
        )
        # A later rollback to this state must keep the lower learning rate.
        self._last_good = self._state()

    def _close_epoch(self, epoch: int, readings: EpochReadings) -> None:
        record = EpochRecord(
            epoch=epoch,
            loss=readings.loss / sum(len(bucket) for bucket in self._buckets.values()),
            learning_rate=self.schedule[self.step - 1] * self.lr_factor,
            gradient_norm=readings.gradient_norm / self._epoch_steps,
            largest_gradient_norm=readings.largest_gradient_norm,
            stalled=self._is_stalled(readings),
        )
        every, last = self.parameters.validation_epochs, epoch == self.parameters.epochs
        if every and (last or epoch % every == 0):
            record = self._measured(record)
        if record.stalled and not (self.history and self.history[-1].stalled):
            log.warning(
                "epoch %d: the training has stalled (gradient norm %g, largest change of a "
                "weight %g)",
                *(epoch, readings.largest_gradient_norm, readings.largest_change),
            )
        self.history += (record,)
        self._sums.zero_()
        self._last_good = self._state()

    def _is_stalled(self, readings: EpochReadings) -> bool:
        if readings.largest_change and readings.largest_gradient_norm:
            return False
        steps = range(self.step - self._epoch_steps, self.step)
        least = _MIN_LR_SHARE * self.parameters.learning_rate
        return any(self.schedule[step] >= least for step in steps)

    def _state(self) -> RunState:
        """A copy of the state, on the same device."""
        return RunState(
            step=self.step,
            weights=self.lora.weights.detach().clone(),
            optimizer=copy_state(self.optimizer),
            sums=self._sums.clone(),
            history=self.history,
            baseline=self.baseline,
            rollbacks=self._rollbacks,
            memory=self.memory,
            loss_scale=self.scaler.state_dict(),
        )

    def _load_state(self, state: RunState) -> None:
        """Restore in place: graphs are recorded on these addresses."""
        self.lora.weights.data.copy_(state.weights)
        if not state.optimizer.tensors:
            self.optimizer.state.clear()  # of lazily initialised optimizers, before the first step
        restore_state(self.optimizer, state.optimizer)
        self._sums.copy_(state.sums)
        self.discard_gradient()
        if state.loss_scale:  # empty if the state comes from a run without loss scaling
            self.scaler.load_state_dict(dict(state.loss_scale))
        self.step = state.step
        self.history = state.history

    def _identity(self) -> dict[str, object]:
        sizes = self._data.dataset.sizes
        return run_identity(self._plan, self._data.captions, sizes, self._base.fingerprint)


def advance_runs(
    runs: Sequence[DiffusionSession],
) -> Mapping[DiffusionSession, StepReport | Exception]:
    """Train the next step of each run, in as few passes as batch shapes and memory allow. Returns
    each run's report or its own error."""
    model = runs[0].model
    outcomes: dict[DiffusionSession, StepReport | Exception] = {}
    for group in [list(runs)] if len(runs) == 1 else group_by_shape(runs):
        while group:
            some, failed = group[: model.runs_per_pass], False
            steps = [run.step for run in some]
            if model.recomputing != some[0].memory.checkpointing:
                model.recompute(some[0].memory.checkpointing)
            try:
                train_step(model, some)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failed = True
            done = [run for run, before in zip(some, steps, strict=True) if run.step > before]
            group = [run for run in group if run not in done]
            # After the handler, because an error keeps the tensors of its whole traceback alive.
            if (
                failed
                and group
                and (failure := reduce_memory(model, group, len(some))) is not None
            ):
                outcomes[group.pop(0)] = failure
    trained = [run for run in runs if run not in outcomes]
    for run in trained:
        # Prefetch while the device works. On out-of-memory the step itself will handle the error.
        with suppress(torch.OutOfMemoryError):
            run.batches.prefetch(min(run.step, run.total_steps - 1))
    for run in trained:
        try:
            outcomes[run] = run.finish_step()
        except Exception as error:
            outcomes[run] = error
    return outcomes
