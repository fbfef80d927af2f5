"""Fetch a task's inputs and build its training plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from application.fetch_images import fetch_images
from application.ports import (
    BlobMissing,
    BlobStore,
    BlobTooLarge,
    ImageInspector,
    InitialLora,
    TrainingPlan,
)
from application.stop_signal import StopSignal
from application.worker_config import WorkerConfig
from domain.errors import UserError
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.image import ImageSet
from domain.parameters import TrainingParameters
from domain.task import TrainingTask


@dataclass(frozen=True, kw_only=True)
class TrainingPlanner:
    """Fetches the images and the initial LoRA, and completes the parameters."""

    blobs: BlobStore
    inspector: ImageInspector
    load_lora: Callable[[str], InitialLora]
    """Fetches the LoRA named by the parameter ``network_weights``. Raises ``UserError`` if the
    file is not a LoRA."""
    config: WorkerConfig

    def __call__(
        self,
        task: TrainingTask,
        known: TrainingParameters | None,
        native_resolution: int,
        stop: StopSignal,
    ) -> tuple[TrainingPlan, ImageSet]:
        """Return the plan, and the fetched images including the refused ones.

        Args:
            known: the parameters of an earlier attempt; they replace the task's.
            native_resolution: default resolution, as the side of a square in pixels.

        Raises:
            ImagesDenied: access to all images is denied.
            TrainingFailed: too few images are usable, or the initial LoRA cannot be used.
            Stopped: ``stop`` was set.
        """
        requested = task.requested
        resolution = (
            known.resolution if known else requested.named.get("resolution", native_resolution)
        )
        images = fetch_images(
            task.images, resolution, self.blobs, self.inspector, self.config, stop
        )
        images.require(self.config.min_images)
        in_an_epoch = tuple(image for image in images.usable for _ in range(image.repeats))

        parameters = known or requested.resolve(
            image_count=len(in_an_epoch), native_resolution=native_resolution
        )
        initial = self._initial_lora(parameters.network_weights)
        if initial is not None:
            parameters = initial.dimensions(parameters)
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

    def _initial_lora(self, named: str | None) -> InitialLora | None:
        if named is None:
            return None
        try:
            return self.load_lora(named)
        except (UserError, BlobMissing, BlobTooLarge) as error:
            message = f"network_weights cannot be used: {error}"
            raise TrainingFailed(Failure(FailureCode.INVALID_TASK, message)) from error
