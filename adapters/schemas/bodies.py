"""Bodies of the webhooks, in the backend's format."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from adapters.schemas.task import LARGEST_STYLE_ID
from domain.failure import Failure
from domain.location import SCHEMES
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric

MAX_ERROR_CHARACTERS = 2000
"""Maximum characters of the message to the artist; a longer one is cut, with an ellipsis."""
_NO_REASON = "Training failed, and no reason was given."


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


StyleId = Annotated[
    int,
    Field(ge=1, le=LARGEST_STYLE_ID, description="The style id of the task", examples=[10]),
]


class ProgressFigures(_Body):
    """Progress of a job. The backend stores the object whole."""

    current_epoch: int = Field(ge=0, description="Epochs finished", examples=[50])
    total_epochs: int = Field(ge=1, description="Epochs of the whole job", examples=[100])
    progress_percent: int = Field(
        ge=0, le=100, description="Whole percent of the steps done; 100 only when all are done"
    )
    estimated_seconds: int = Field(
        ge=0,
        description="Time left in seconds, at the speed measured over this run's last minute",
        examples=[900],
    )


class ProgressBody(_Body):
    """Body of ``PATCH /api/webhooks/training/progress``."""

    style_id: StyleId
    progress: ProgressFigures = Field(description="Progress of the job")


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


class MetricFigures(_Body):
    """Figures of a finished style. The backend stores the object whole."""

    loss: float = Field(description="Mean loss over the last epoch", examples=[0.05])
    epochs: int = Field(ge=1, description="Epochs trained", examples=[100])
    steps: int = Field(ge=1, description="Steps trained, in all epochs", examples=[1500])
    best_epoch: Annotated[int, Field(ge=1)] | SkipJsonSchema[None] = Field(
        None,
        description="The measured epoch with the lowest loss; absent if nothing was measured",
        examples=[80],
        json_schema_extra=_without_default,
    )
    delivered_epoch: Annotated[int, Field(ge=1)] | SkipJsonSchema[None] = Field(
        None,
        description="The epoch whose weights are at `model_path`; below `epochs` if a later epoch "
        "was worse",
        examples=[80],
        json_schema_extra=_without_default,
    )
    measured_loss: float | SkipJsonSchema[None] = Field(
        None,
        description="Loss of these weights over fixed noises; absent if nothing was measured",
        examples=[0.05],
        json_schema_extra=_without_default,
    )
    base_loss: float | SkipJsonSchema[None] = Field(
        None,
        description="The same loss of the base model without the style; absent if nothing was "
        "measured",
        examples=[0.12],
        json_schema_extra=_without_default,
    )
    task_id: str = Field(
        description="Id of the task that made the style; distinguishes it from an earlier task",
        examples=["550e8400-e29b-41d4-a716-446655440000"],
    )
    sha256: str = Field(
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the file at `model_path`, in hexadecimal",
        examples=["ab" * 32],
    )


class CompleteBody(_Body):
    """Body of ``POST /api/webhooks/training/complete``: the style is ready."""

    style_id: StyleId
    model_path: str = Field(
        pattern=f"^({'|'.join(SCHEMES)})://",
        description="Location of the weights",
        examples=[
            "s3://bucket/models/style_10.safetensors",
            "gs://bucket/models/style-10/550e8400-e29b-41d4-a716-446655440000/"
            "adapter_model.safetensors",
        ],
    )
    training_metric: MetricFigures = Field(description="Results of the training")


class FailedBody(_Body):
    """Body of ``POST /api/webhooks/training/failed``: there will be no style."""

    style_id: StyleId
    error_message: str = Field(
        min_length=1,
        max_length=MAX_ERROR_CHARACTERS,
        description="For the artist: what happened and what to do",
        examples=["Insufficient training data quality"],
    )
    error_code: str = Field(
        min_length=1,
        description="The reason, for programs. The artist's page knows `LOW_QUALITY_DATA`, "
        "`TRAINING_FAILED` and `GPU_OOM`; the worker also sends `LOSS_DIVERGED`, "
        "`STYLE_NOT_LEARNED`, `INVALID_TASK` and `CANCELLED`",
        examples=["LOW_QUALITY_DATA"],
    )


def progress_body(style_id: int, progress: Progress) -> dict[str, Any]:
    """``ProgressBody`` as JSON values.

    Raises:
        ValueError: no speed is measured yet, so the remaining time is unknown.
    """
    if progress.estimated_seconds is None:
        raise ValueError("progress without a measured speed cannot be sent")
    figures = ProgressFigures(
        current_epoch=progress.current_epoch,
        total_epochs=progress.total_epochs,
        progress_percent=progress.percent,
        estimated_seconds=progress.estimated_seconds,
    )
    return ProgressBody(style_id=style_id, progress=figures).model_dump()


def complete_body(
    task_id: str, style_id: int, artifact: Artifact, metric: TrainingMetric
) -> dict[str, Any]:
    """``CompleteBody`` as JSON values."""
    figures = MetricFigures(**asdict(metric), task_id=task_id, sha256=artifact.sha256)
    return CompleteBody(
        style_id=style_id, model_path=str(artifact.location), training_metric=figures
    ).model_dump(exclude_none=True)


def failed_body(style_id: int, failure: Failure) -> dict[str, Any]:
    """``FailedBody`` as JSON values, with a message that is safe for PostgreSQL."""
    return FailedBody(
        style_id=style_id,
        error_message=_presentable(failure.message) or _NO_REASON,
        error_code=str(failure.code),
    ).model_dump()


def _presentable(message: str) -> str:
    """The text without NUL and lone surrogates, which PostgreSQL rejects; cut to length."""
    text = message.replace("\0", "\ufffd").encode(errors="replace").decode().strip()
    longest = MAX_ERROR_CHARACTERS
    return text if len(text) <= longest else text[: longest - 1] + "…"
