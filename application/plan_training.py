"""Fetch a task's inputs and build its training plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from application.caption_images import caption_images
from application.fetch_images import fetch_images
from application.job_store import JobStore
from application.ports import BlobMissing, BlobTooLarge, Captioner, ImageInspector, Trainer
from application.stop_signal import StopSignal
from application.worker_config import WorkerConfig
from domain.errors import UserError
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.image import ImageSet
from domain.parameters import TrainingParameters
from domain.task import TrainingTask
from domain.training_plan import InitialLora, TrainingPlan

_REASONS: dict[type[Exception], str] = {
    BlobMissing: "the file is not there",
    BlobTooLarge: "the file is too large",
}


@dataclass(frozen=True, kw_only=True)
class TrainingPlanner:
    """Fetches the images and the initial LoRA, and completes captions and parameters."""

    store: JobStore
    inspector: ImageInspector
    load_lora: Callable[[str], InitialLora]
    """Fetches the LoRA named by the parameter ``network_weights``. Raises ``UserError`` if the
    file is not a LoRA."""
    config: WorkerConfig
    captioner: Captioner | None = None
    """Captions images without a caption; None leaves them without."""

    def __call__(
        self,
        task: TrainingTask,
        recorded: TrainingParameters | None,
        trainer: Trainer,
        stop: StopSignal,
    ) -> tuple[TrainingPlan, ImageSet]:
        """Return the plan, and the fetched images including the rejected ones.

        Args:
            recorded: the parameters of an earlier attempt; they replace the task's.
            trainer: its native resolution is the default.

        Raises:
            BlobDenied: access to all images is denied.
            TrainingFailed: too few images are usable, or the initial LoRA cannot be used.
            Stopped, TrainerBroken: as the inspector and the captioner.
        """
        requested, native = task.requested, trainer.native_resolution
        resolution = recorded.resolution if recorded else requested.named.get("resolution", native)
        images = fetch_images(
            task.images, resolution, self.store.blobs, self.inspector, self.config, stop
        )
        images.require(self.config.min_images)
        # A later attempt must train on the captions of the first.
        captioner = self.captioner if recorded is None else None
        if recorded is not None or captioner is not None:
            images = caption_images(
                images, task.task_id, self.store, captioner, self.config.keep_style_words, stop
            )
        in_an_epoch = tuple(image for image in images.usable for _ in range(image.repeats))

        parameters = recorded or requested.resolve(
            image_count=len(in_an_epoch), native_resolution=native
        )
        parameters, initial = self._with_initial_lora(parameters)
        plan = TrainingPlan(
            style_id=task.style_id,
            images=in_an_epoch,
            tags=task.tags,
            parameters=parameters,
            created_at=task.created_at,
            label=task.label,
            initial=initial,
        )
        return plan, images

    def _with_initial_lora(
        self, parameters: TrainingParameters
    ) -> tuple[TrainingParameters, InitialLora | None]:
        if parameters.network_weights is None:
            return parameters, None
        try:
            initial = self.load_lora(parameters.network_weights)
            return initial.with_own_dimensions(parameters), initial
        except (UserError, BlobMissing, BlobTooLarge) as error:
            message = f"network_weights cannot be used: {_REASONS.get(type(error), error)}"
            raise TrainingFailed(Failure(FailureCode.INVALID_TASK, message)) from error
