"""Every setting, its default and its check: the only place that reads the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class InvalidSettings(Exception):
    """At least one setting is wrong; each line of the text names one and its remedy."""


class Settings(BaseSettings):
    """Read from the environment and from `.env`; names in capitals there."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", env_ignore_empty=True)

    base_model: str | None = Field(
        None,
        description="Base model: a diffusers folder, a `.safetensors` checkpoint or a hub name. "
        "Unset: Stable Diffusion 1.5 where a GPU and a hub are there, else the small base",
    )
    base_model_config: Path | None = Field(
        None,
        description="Folder with the configuration of a single-file base model, for machines "
        "without a hub",
    )
    device: str | None = Field(
        None, description="`cuda`, `cuda:1`, `cpu`. Unset: the GPU where there is one"
    )
    spool_dir: Path = Field(
        Path("spool"), description="Folder that is watched for tasks when no broker is configured"
    )
    storage_dir: Path = Field(
        Path("spool/buckets"), description="Folder with one folder a bucket, instead of S3"
    )
    aws_storage_bucket_name: str = Field(
        "stylelicense-training-data", description="Bucket of the training images"
    )
    model_bucket_name: str = Field(
        "stylelicense-models", description="Bucket of weights, checkpoints, journals and reports"
    )
    backend_api_url: str | None = Field(
        None, description="Where the backend is; a task that names another host is logged"
    )
    worker_name: str | None = Field(
        None, description="This worker's name in leases and logs. Unset: host and process"
    )
    fewest_pictures: int = Field(
        10, ge=1, le=100, description="Usable pictures below which a job fails"
    )
    checkpoint_every: int = Field(10, ge=1, description="Epochs between checkpoints")
    progress_every: float = Field(30.0, gt=0, description="Seconds between progress calls")
    cancel_poll: float = Field(5.0, gt=0, description="Seconds between looks for a cancellation")
    lease_seconds: float = Field(
        60.0, ge=3, description="Seconds after which a lost worker's job can be taken over"
    )
    most_setbacks: int = Field(
        5, ge=1, description="Crashes without a checkpoint in between, before a job is given up"
    )
    fetch_concurrency: int = Field(8, ge=1, le=64, description="Pictures fetched at a time")
    log_level: str = Field(
        "INFO",
        pattern="^(DEBUG|INFO|WARNING|ERROR)$",
        description="`DEBUG`, `INFO`, `WARNING` or `ERROR`",
    )


def load_settings(env_file: Path | None = Path(".env")) -> Settings:
    """The settings in force.

    Raises:
        InvalidSettings: names every setting that is wrong.
    """
    try:
        return Settings(_env_file=env_file)
    except ValidationError as error:
        lines = [
            f"{str(problem['loc'][0]).upper()}={problem['input']!r}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise InvalidSettings("\n".join(lines)) from None


def settings_table() -> str:
    """Every setting as a row of the README's table."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)
