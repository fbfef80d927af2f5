"""One run of the trainer, a step at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapters.diffusion.base_model import BaseModel
from adapters.diffusion.checkpoint import (
    RunState,
    decode_checkpoint,
    encode_checkpoint,
    run_identity,
)
from adapters.diffusion.dataset import Dataset
from adapters.diffusion.epoch_plan import Batch, draw_step, epoch_batches, steps_per_epoch
from adapters.diffusion.evaluation import Evaluation, held_out_positions, trained_buckets
from adapters.diffusion.export import RunFacts, encode_style
from adapters.diffusion.failures import loss_diverged, out_of_memory_is_a_failure
from adapters.diffusion.learning_rate import learning_rate_of
from adapters.diffusion.lora import Adapters, dropout_draws
from adapters.diffusion.loss import objective_of
from adapters.diffusion.optimizer import OptimizerStateInvalid
from adapters.diffusion.preview import PreviewRequest, draw_previews
from adapters.diffusion.step import Stepper
from application.ports import (
    Checkpoint,
    CheckpointRejected,
    EpochRecord,
    Preview,
    StepReport,
    TrainingPlan,
)


class DiffusionSession:
    """Where a run stands: steps done, matrices, optimizer, loss of the epoch, history."""

    def __init__(
        self,
        *,
        base: BaseModel,
        plan: TrainingPlan,
        captions: Sequence[str],
        dataset: Dataset,
        adapters: Adapters,
        previews: PreviewRequest,
        device: torch.device,
    ) -> None:
        self._base = base
        self._plan = plan
        self._captions = captions
        self._dataset = dataset
        self._adapters = adapters
        self._previews = previews
        self._device = device
        parameters = plan.parameters
        held_out = held_out_positions(
            len(dataset.pictures), parameters.validation_split, parameters.seed
        )
        self._buckets = trained_buckets(dataset.buckets, held_out)
        self._epoch_steps = steps_per_epoch(list(self._buckets.values()), parameters.batch_size)
        self._learning_rate = learning_rate_of(parameters, self.total_steps)
        objective = objective_of(base.noise_schedule, parameters.snr_gamma, device)
        self._evaluation = Evaluation(
            base.unet, objective, dataset, held_out, parameters.seed, device
        )
        self._stepper = Stepper(
            base.unet,
            adapters.flat,
            objective,
            self._learning_rate,
            parameters,
        )
        self._step = 0
        self._batches: tuple[int, list[Batch]] | None = None
        self._epoch_loss = torch.zeros((), device=device)
        self._history: list[EpochRecord] = []

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

    def advance(self) -> StepReport:
        """Run the next step.

        Raises:
            TrainingFailed: GPU_OOM; at the end of an epoch LOSS_DIVERGED.
        """
        if self.finished:
            raise RuntimeError("the run is finished")
        with out_of_memory_is_a_failure():
            self._epoch_loss += self._train(self._next_batch())
        self._step += 1
        epoch, into = divmod(self._step, self._epoch_steps)
        if into:
            return StepReport(epoch, self._step, epoch_finished=False)
        record = self._close_epoch(epoch)
        return StepReport(epoch, self._step, epoch_finished=True, loss=record.loss)

    def checkpoint(self) -> Checkpoint:
        """The run as it stands between two steps."""
        state = RunState(
            step=self._step,
            weights=self._adapters.flat,
            optimizer=self._stepper.optimizer_state(),
            epoch_loss=self._epoch_loss,
            history=self._history,
        )
        data = encode_checkpoint(state, self._identity())
        return Checkpoint(self._step // self._epoch_steps, self._step, data)

    def resume(self, data: bytes) -> None:
        """Go to where ``data`` was taken.

        Raises:
            CheckpointRejected: it is damaged, or another run's.
        """
        weights = self._adapters.flat
        state = decode_checkpoint(data, self._identity(), weights.numel())
        try:
            self._stepper.restore(state.optimizer)
        except OptimizerStateInvalid as error:
            raise CheckpointRejected(f"the checkpoint is damaged: {error}") from error
        weights.data.copy_(state.weights)
        self._step = state.step
        self._epoch_loss.copy_(state.epoch_loss)
        self._history = list(state.history)

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
        return encode_style(self._adapters, self._plan, facts)

    def previews(self, *, adapted: bool) -> tuple[Preview, ...]:
        """Pictures from fixed prompts and seeds, with the adapters or without."""
        with out_of_memory_is_a_failure():
            if adapted:
                return draw_previews(self._base, self._previews, self._device)
            with self._adapters.switched_off():
                return draw_previews(self._base, self._previews, self._device)

    def close(self) -> None:
        """Let go of everything on the device, whoever still holds the session."""
        del self._dataset, self._adapters, self._stepper, self._previews, self._epoch_loss
        del self._evaluation

    def _next_batch(self) -> Batch:
        epoch, position = divmod(self._step, self._epoch_steps)
        if self._batches is None or self._batches[0] != epoch:
            parameters = self._plan.parameters
            buckets = list(self._buckets.values())
            batches = epoch_batches(buckets, parameters.batch_size, parameters.seed, epoch)
            self._batches = epoch, batches
        return self._batches[1][position]

    def _train(self, batch: Batch) -> torch.Tensor:
        dataset = self._dataset
        draw = draw_step(
            self._plan.parameters,
            self._step,
            dataset.shape(batch),
            self._base.noise_schedule.config.num_train_timesteps,
        )
        latents = dataset.latents(batch, draw.mirrored, draw.posterior.to(self._device))
        with dropout_draws(self._plan.parameters, self._step, self._device):
            return self._stepper.step(
                self._step,
                latents,
                draw.noise.to(self._device),
                draw.timesteps.to(self._device),
                dataset.conditioning(batch, draw.uncaptioned),
            )

    def _close_epoch(self, epoch: int) -> EpochRecord:
        if not torch.isfinite(self._epoch_loss):
            raise loss_diverged(epoch)
        pictures = sum(len(bucket) for bucket in self._buckets.values())
        record = EpochRecord(
            epoch,
            float(self._epoch_loss) / pictures,
            self._learning_rate(self._step - 1),
            *self._measured(epoch),
        )
        self._history.append(record)
        self._epoch_loss.zero_()
        return record

    def _measured(self, epoch: int) -> tuple[float | None, float | None]:
        """The epoch's losses over fixed noises, of pictures trained on and held out."""
        every = self._plan.parameters.validation_epochs
        if not every or (epoch % every and epoch != self._plan.parameters.epochs):
            return None, None
        with out_of_memory_is_a_failure():
            return self._evaluation.on_trained(), self._evaluation.on_held_out()

    def _identity(self) -> dict[str, object]:
        return run_identity(self._plan, self._captions, self._base.fingerprint)
