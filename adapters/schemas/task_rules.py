"""What a worker accepts beyond the message's format: buckets, sizes, loadable styles."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from domain.location import FORMS, Bucket, InvalidLocation, Location
from domain.task import InvalidTask, TrainingTask, check_size

NOT_IN_A_FOLDER = ("train_text_encoder", "use_dora")
"""Parameters whose styles ``PeftModel.from_pretrained(unet, folder)`` of PEFT 0.7 fails to load or
renders wrongly."""


@dataclass(frozen=True, kw_only=True)
class TaskRules:
    """The limits of one worker's tasks."""

    image_buckets: Sequence[Bucket]
    """Buckets that images may come from."""
    models: Bucket
    """The bucket of the weights, from which a task may also start."""
    own_buckets: Collection[Bucket]
    """The worker's buckets. Its credentials give access to them, so images from there are rejected
    unless ``image_buckets`` has the bucket."""
    bucket_of: Callable[[Location], Bucket]
    weights_in_folder: bool
    """Whether weights are stored as folders, which excludes ``NOT_IN_A_FOLDER``."""
    max_steps: int
    max_resolution: int

    def check(self, task: TrainingTask) -> None:
        """Raise ``InvalidTask`` if the task breaks a rule."""
        closed = set(self.own_buckets).difference(self.image_buckets)
        for number, image in enumerate(task.images):
            if self.bucket_of(image) in closed:
                remedy = f"give images from {', '.join(map(str, self.image_buckets))}"
                raise _invalid(task, f"images.{number}", str(image), remedy)
        for name in NOT_IN_A_FOLDER if self.weights_in_folder else ():
            if task.requested.named.get(name):
                remedy = "leave it out: this platform cannot load such a style (WEIGHTS_FORM)"
                raise _invalid(task, f"parameters.{name}", True, remedy)
        initial = task.requested.named.get("network_weights")
        if initial is not None and not self._may_start_from(initial):
            buckets = sorted({self.models, *self.image_buckets})
            remedy = f"give {FORMS} of a LoRA in one of these buckets: " + ", ".join(
                map(str, buckets)
            )
            raise _invalid(task, "parameters.network_weights", repr(initial), remedy)
        check_size(task, max_steps=self.max_steps, max_resolution=self.max_resolution)

    def _may_start_from(self, text: str) -> bool:
        try:
            return self.bucket_of(Location.parse(text)) in {self.models, *self.image_buckets}
        except InvalidLocation:
            return False


def _invalid(task: TrainingTask, field: str, value: object, remedy: str) -> InvalidTask:
    return InvalidTask(f"data.{field}", value, remedy, task.style_id, task.task_id)
