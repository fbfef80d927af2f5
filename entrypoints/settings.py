"""Every setting, its default and its check: the only place that reads the environment."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from adapters.rabbitmq.options import RabbitOptions, TlsOptions, check_host, check_queue
from adapters.s3.options import check_endpoint
from adapters.status_page.binding import check_binding
from adapters.webhook.options import WebhookOptions, check_token, checked_address
from application.lease import LeaseTerms
from application.worker_config import WorkerConfig
from domain.errors import UserError
from domain.location import InvalidLocation, Location
from entrypoints.devices import parse_devices
from entrypoints.folders import nearest_existing
from entrypoints.settings_typos import settings_typos

log = logging.getLogger(__name__)

DEFAULTS = WorkerConfig()
"""The use cases' figures, where no setting says otherwise."""
MAX_JOBS_TOGETHER = 32
"""Jobs of one worker: each has a lease and threads, and the card's memory ends first."""
DAY = 86_400.0
"""Seconds: the longest that anything here is waited for."""
WEEK = 7 * DAY
"""Seconds: longer than any job, in milliseconds less than the 2**31 that some brokers end at."""


RENAMED = {
    "fewest_pictures": "min_images",
    "most_setbacks": "max_failures",
    "least_disk_gb": "min_disk_gb",
    "grace_seconds": "shutdown_timeout",
}
"""Names that version 0.1 read. They work in this release, where the new name is not set."""


class InvalidSettings(UserError):
    """At least one setting is wrong; each line of the text names one and its remedy."""


class Settings(BaseSettings):
    """Read from the environment and from `.env`; names in capitals there.

    A check that needs another setting stands at the later of the two, so that every problem is
    found in one go.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        extra="ignore",
        env_ignore_empty=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The usual sources, then the values of settings under their former names."""
        given: dict[str, str | None] = {}
        for source in (dotenv_settings, env_settings):
            assert isinstance(source, EnvSettingsSource)
            given |= source.env_vars
        former = {new: given[old] for old, new in RENAMED.items() if given.get(old)}
        renamed = InitSettingsSource(settings_cls, former)
        return init_settings, env_settings, dotenv_settings, file_secret_settings, renamed

    base_model: str | None = Field(
        None,
        description="Base model: a diffusers folder, a `.safetensors` checkpoint or a hub "
        "name. Required when a broker is configured. Default: Stable Diffusion "
        "1.5 if a GPU and the hub are available, else the small base",
    )
    base_model_config: Path | None = Field(
        None,
        description="Folder with the configuration of a single-file base model, for "
        "machines without access to the hub",
    )
    device: str | None = Field(
        None,
        description="Device to train on: `cuda`, `cuda:1` or `cpu`. Default: the GPU if "
        "there is one",
    )

    jobs_together: str = Field(
        "1",
        description="Number of jobs that one worker trains at the same time in one pass "
        "over the base model, if their LoRA settings match. `auto`: as many as "
        "fit into the GPU's memory, at most 8",
    )

    rabbitmq_host: str | None = Field(
        None,
        description="Broker host name. If neither this nor `RABBITMQ_URL` is set, tasks are"
        " read from `SPOOL_DIR`",
    )
    rabbitmq_port: int | None = Field(
        None, ge=1, le=65535, description="Broker port. Default: 5672, or 5671 with TLS"
    )
    rabbitmq_user: str = Field("guest", description="Broker user name")
    rabbitmq_pass: SecretStr = Field(SecretStr("guest"), description="Broker password")
    rabbitmq_vhost: str = Field("/", description="AMQP virtual host")
    rabbitmq_url: SecretStr | None = Field(
        None,
        description="Broker URL, `amqp://` or `amqps://`; replaces host, port, user, "
        "password and virtual host",
    )
    rabbitmq_ssl: bool = Field(False, description="Connect to the broker with TLS")
    rabbitmq_ca_file: Path | None = Field(
        None, description="CA certificates (PEM) to verify the broker with. Default: the system's"
    )
    rabbitmq_cert_file: Path | None = Field(
        None, description="Client certificate (PEM) for the broker"
    )
    rabbitmq_key_file: Path | None = Field(
        None, description="Private key (PEM) of the client certificate"
    )
    rabbitmq_heartbeat: int = Field(
        RabbitOptions.heartbeat,
        ge=2,
        le=3600,
        description="AMQP heartbeat interval in seconds. A connection without traffic for "
        "up to twice this time is closed and opened again",
    )
    rabbitmq_queue: str = Field(
        RabbitOptions.queue,
        description="Task queue. The worker also declares `<queue>.retry.<seconds>` and "
        "`<queue>.dead`",
    )
    retry_delays: Annotated[tuple[float, ...], NoDecode] = Field(
        RabbitOptions.retry_delays,
        description="Retry delays in seconds, separated by commas; each gets a queue of its own",
    )
    ack_timeout: int = Field(
        int(RabbitOptions.ack_timeout),
        ge=60,
        le=int(WEEK),
        description="Acknowledgement timeout in seconds that the worker requests from the "
        "broker (`x-consumer-timeout`)",
    )
    spool_dir: Path = Field(
        Path("spool"), description="Folder to read tasks from when no broker is configured"
    )

    storage_dir: Path | None = Field(
        None,
        description="Folder that replaces the object store; each bucket is a subfolder. "
        "Default without a broker: `spool/buckets`",
    )
    aws_access_key_id: str | None = Field(
        None, description="S3 access key ID. Default: boto3's credential chain (role, profile)"
    )
    aws_secret_access_key: SecretStr | None = Field(None, description="S3 secret access key")
    aws_session_token: SecretStr | None = Field(
        None, description="AWS session token (temporary credentials)"
    )
    aws_s3_region_name: str = Field("us-east-1", description="AWS region of the buckets")
    s3_endpoint_url: str | None = Field(
        None, description="URL of an S3-compatible store such as MinIO. Default: AWS"
    )
    aws_storage_bucket_name: str = Field(
        "stylelicense-training-data", description="Bucket with the training images"
    )
    model_bucket_name: str = Field(
        "stylelicense-models", description="Bucket for weights, checkpoints, journals and reports"
    )
    allowed_image_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Buckets that images may be read from, separated by commas. Default: "
        "`AWS_STORAGE_BUCKET_NAME`",
    )

    backend_api_url: str | None = Field(
        None,
        description="Backend URL for the webhooks; HTTPS unless the host is a loopback "
        "address. Required when a broker is configured; without it, outcomes "
        "are printed",
    )
    internal_api_token: SecretStr | None = Field(
        None, description="Bearer token for the backend, at least 32 characters"
    )
    backend_ca_file: Path | None = Field(
        None, description="CA certificates (PEM) to verify the backend with. Default: the system's"
    )
    webhook_timeout: float = Field(
        WebhookOptions.read_timeout,
        gt=0,
        le=300,
        description="Seconds to wait for the backend's answer to a webhook. Set it above "
        "the time-out of any proxy in between",
    )

    worker_name: str | None = Field(
        None,
        description="Name of this worker in leases and logs. Default: host name and process ID",
    )
    min_images: int = Field(
        DEFAULTS.min_images,
        ge=1,
        le=100,
        description="Minimum number of usable images; a job with fewer fails",
    )
    checkpoint_every: int = Field(
        DEFAULTS.checkpoint_every, ge=1, description="Epochs between two checkpoints"
    )
    preview_share: float = Field(
        DEFAULTS.preview_share,
        ge=0,
        le=1,
        description="Share of the training time that previews at checkpoints may take; 0 "
        "turns them off, and those of the report too",
    )
    keep_checkpoints: int | None = Field(
        DEFAULTS.keep_checkpoints,
        ge=0,
        description="Number of latest checkpoints to keep of a finished job, besides the "
        "best epoch's; 0 keeps none",
    )
    progress_every: float = Field(
        DEFAULTS.progress_every, gt=0, le=DAY, description="Seconds between two progress webhooks"
    )
    cancel_poll: float = Field(
        DEFAULTS.cancel_poll,
        gt=0,
        le=DAY,
        description="Seconds between two checks for a cancellation",
    )
    lease_seconds: float = Field(
        DEFAULTS.lease.seconds,
        ge=3,
        le=DAY,
        description="Lease term in seconds. After one to two terms without renewal another "
        "worker takes the job over",
    )
    max_failures: int = Field(
        DEFAULTS.max_failures,
        ge=1,
        description="Maximum number of consecutive failures without a new checkpoint; after"
        " that the job fails",
    )
    max_job_steps: int = Field(
        100_000,
        ge=1,
        description="Maximum of epochs times images of a task; a larger one is rejected as "
        "`INVALID_TASK`",
    )
    max_resolution: int = Field(
        1024,
        ge=64,
        le=2048,
        description="Maximum `resolution` in pixels of a task; a larger one is rejected as "
        "`INVALID_TASK`",
    )
    fetch_concurrency: int = Field(
        DEFAULTS.fetch_concurrency,
        ge=1,
        le=64,
        description="Number of images to download in parallel",
    )
    shutdown_timeout: float = Field(
        25.0,
        gt=0,
        le=DAY,
        description="Seconds from SIGTERM until the process exits, finished or not. "
        "Kubernetes grants 30 s, RunPod spot pods 5 s",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Log level: `DEBUG`, `INFO`, `WARNING` or `ERROR`"
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto",
        description="Log format: `text`, `json`, or `auto` (text on a terminal, else JSON)",
    )
    sentry_dsn: SecretStr | None = Field(
        None, description="Sentry DSN to report errors to; requires the extra `sentry`"
    )
    cloudwatch_log_group: str | None = Field(
        None,
        description="Log group in Amazon CloudWatch that gets the log lines as JSON, in a stream "
        "named after the worker; the group must exist. Needs the extra `cloudwatch`. Region and "
        "credentials are those of S3",
    )
    status_host: str = Field(
        "127.0.0.1",
        description="Address that the status page, metrics and health checks listen on. Any"
        " but a loopback address requires `STATUS_TOKEN`",
    )
    status_port: int = Field(
        9108,
        ge=0,
        le=65535,
        description="Port of the status page, metrics and health checks; 0 turns them off",
    )
    status_token: SecretStr | None = Field(
        None, description="Token that the status page and metrics require, at least 16 characters"
    )
    min_disk_gb: float = Field(
        1.0, ge=0, description="Minimum free disk space in GB; with less the worker is not ready"
    )

    @field_validator("retry_delays", "allowed_image_buckets", mode="before")
    @classmethod
    def _parts(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _capitals(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("device")
    @classmethod
    def _device(cls, value: str | None) -> str | None:
        return value if value is None else ",".join(parse_devices(value))

    @field_validator("jobs_together")
    @classmethod
    def _together(cls, value: str) -> str:
        if value != "auto" and not (value.isdecimal() and 1 <= int(value) <= MAX_JOBS_TOGETHER):
            raise ValueError(f"give `auto`, or a number from 1 to {MAX_JOBS_TOGETHER}")
        return value

    @field_validator("base_model_config")
    @classmethod
    def _folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError("no folder is there; give one that is")
        return value

    @field_validator(
        "rabbitmq_ca_file", "rabbitmq_cert_file", "rabbitmq_key_file", "backend_ca_file"
    )
    @classmethod
    def _file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("no file is there; give one in PEM")
        return value

    @field_validator("rabbitmq_host")
    @classmethod
    def _host(cls, value: str | None) -> str | None:
        if value is not None:
            check_host(value)
        return value

    @field_validator("rabbitmq_url")
    @classmethod
    def _amqp(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            RabbitOptions.from_url(value.get_secret_value())
        return value

    @field_validator("rabbitmq_ssl")
    @classmethod
    def _not_in_the_clear(cls, value: bool, info: ValidationInfo) -> bool:
        url = info.data.get("rabbitmq_url")
        if value and url is not None and not _is_encrypted(url):
            raise ValueError("RABBITMQ_URL is without TLS: write amqps:// there")
        return value

    @field_validator("rabbitmq_ca_file", "rabbitmq_cert_file", "rabbitmq_key_file")
    @classmethod
    def _of_use(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        # Where one of the two is wrong itself, that is told, and enough.
        known = {"rabbitmq_url", "rabbitmq_ssl"} <= info.data.keys()
        url = info.data.get("rabbitmq_url")
        encrypted = info.data.get("rabbitmq_ssl") or (url is not None and _is_encrypted(url))
        if value is not None and known and not encrypted:
            raise ValueError(
                "it is of no use without TLS: set RABBITMQ_SSL=true, or write amqps:// in "
                "RABBITMQ_URL"
            )
        return value

    @field_validator("rabbitmq_ca_file", "backend_ca_file")
    @classmethod
    def _authority(cls, value: Path | None) -> Path | None:
        return _loaded(value, TlsOptions(ca_file=value), "give certificates in PEM")

    @field_validator("rabbitmq_key_file")
    @classmethod
    def _pair(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "rabbitmq_cert_file" not in info.data:
            return value
        certificate = info.data["rabbitmq_cert_file"]
        if (value is None) != (certificate is None):
            raise ValueError("give RABBITMQ_CERT_FILE and RABBITMQ_KEY_FILE both, or neither")
        tls = TlsOptions(certificate=certificate, key=value)
        return _loaded(value, tls, "give the key of RABBITMQ_CERT_FILE, both in PEM")

    @field_validator("rabbitmq_queue")
    @classmethod
    def _queue(cls, value: str) -> str:
        check_queue(value)
        return value

    @field_validator("retry_delays")
    @classmethod
    def _ladder(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0.001 <= delay <= DAY for delay in value):
            raise ValueError("give one or more seconds, each from 0.001 to a day")
        return tuple(sorted(set(value)))

    @field_validator("aws_secret_access_key")
    @classmethod
    def _secret(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if (value is None) != (info.data.get("aws_access_key_id") is None):
            raise ValueError("give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY both, or neither")
        return value

    @field_validator("aws_session_token")
    @classmethod
    def _temporary(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None and info.data.get("aws_access_key_id") is None:
            raise ValueError("give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY with it")
        return value

    @field_validator("s3_endpoint_url")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None:
            check_endpoint(value)
        return value

    @field_validator("aws_storage_bucket_name", "model_bucket_name", "allowed_image_buckets")
    @classmethod
    def _buckets(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        try:
            for name in (value,) if isinstance(value, str) else value:
                Location(name, "key")
        except InvalidLocation:
            raise ValueError("give the name alone, without s3:// and without a folder") from None
        return value

    @field_validator("backend_api_url")
    @classmethod
    def _backend(cls, value: str | None) -> str | None:
        return value if value is None else checked_address(value)

    @field_validator("internal_api_token")
    @classmethod
    def _token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_token(value.get_secret_value())
        return value

    @property
    def has_broker(self) -> bool:
        """Whether tasks come from RabbitMQ."""
        return self.rabbitmq_host is not None or self.rabbitmq_url is not None

    @property
    def has_s3(self) -> bool:
        """Whether blobs lie in S3: wherever a broker or S3's own address is named."""
        return self.storage_dir is None and (self.has_broker or self.s3_endpoint_url is not None)

    @property
    def storage_folder(self) -> Path:
        """The folder of buckets, where there is no S3."""
        return self.storage_dir or self.spool_dir / "buckets"

    @property
    def image_buckets(self) -> tuple[str, ...]:
        """The buckets that images may come from."""
        return self.allowed_image_buckets or (self.aws_storage_bucket_name,)

    def secrets(self) -> tuple[str, ...]:
        """Every secret there is, for what must never show one."""
        found = [value for value in dict(self).values() if isinstance(value, SecretStr)]
        texts = [value.get_secret_value() for value in found]
        if self.rabbitmq_url is not None:
            password = urlsplit(self.rabbitmq_url.get_secret_value()).password or ""
            texts += [password, unquote(password)]
        return tuple(text for text in texts if text and text != "guest")


class WorkerSettings(Settings):
    """With the checks that only a worker needs: other commands neither train nor notify."""

    @field_validator("jobs_together")
    @classmethod
    def _one_job_on_several(cls, value: str, info: ValidationInfo) -> str:
        if value != "1" and "," in (info.data.get("device") or ""):
            raise ValueError("give 1: DEVICE has several GPUs share one job")
        return value

    # No other check needs the setting at which this one stands.
    @field_validator("spool_dir")
    @classmethod
    def _names_its_base(cls, value: Path, info: ValidationInfo) -> Path:
        if _has_broker(info) and info.data.get("base_model") is None:
            raise ValueError(
                "BASE_MODEL is not set: name the base model, for what a broker's tasks train is "
                "announced"
            )
        return value

    @field_validator("spool_dir")
    @classmethod
    def _can_be_had(cls, value: Path, info: ValidationInfo) -> Path:
        known = {"rabbitmq_host", "rabbitmq_url"} <= info.data.keys()
        # A worker waits for a queue that is away, and this one would stay away.
        if known and not _has_broker(info) and (reason := _why_not_ours(value)):
            raise ValueError(f"{reason}; give a folder that this worker can write")
        return value

    @field_validator("backend_api_url")
    @classmethod
    def _announces(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and _has_broker(info):
            raise ValueError("give the backend's address: a broker's tasks have one")
        return value

    @field_validator("internal_api_token")
    @classmethod
    def _is_known(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None and info.data.get("backend_api_url"):
            raise ValueError("give the token that the backend at BACKEND_API_URL knows")
        return value

    @field_validator("lease_seconds")
    @classmethod
    def _outlasts_a_call(cls, value: float, info: ValidationInfo) -> float:
        timeout = info.data.get("webhook_timeout", 0.0)
        if info.data.get("backend_api_url") and LeaseTerms(value).takeover_delay < timeout:
            raise ValueError(
                f"give {1.5 * timeout:g} or more, for WEBHOOK_TIMEOUT={timeout:g}: nobody must "
                "take a job over during its final call"
            )
        return value

    @field_validator("status_token")
    @classmethod
    def _status(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if info.data.get("status_port") and info.data.get("status_host"):
            check_binding(
                info.data["status_host"], None if value is None else value.get_secret_value()
            )
        return value


def _has_broker(info: ValidationInfo) -> bool:
    return bool(info.data.get("rabbitmq_host") or info.data.get("rabbitmq_url"))


def _why_not_ours(folder: Path) -> str | None:
    """Why files cannot be put into a folder, there or still to be made; None where they can."""
    nearest = nearest_existing(folder)
    if not os.path.isdir(nearest):
        return f"{nearest} is no folder"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} cannot be written"


def _is_encrypted(url: SecretStr) -> bool:
    return urlsplit(url.get_secret_value()).scheme == "amqps"


def _loaded(value: Path | None, tls: TlsOptions, remedy: str) -> Path | None:
    """Check that the files of a setting can be loaded."""
    if value is not None:
        try:
            tls.context()
        except OSError as error:
            raise ValueError(f"{remedy} ({error.strerror or error})") from None
    return value


def load_settings(
    env_file: Path | None = Path(".env"), *, kind: type[Settings] = Settings
) -> Settings:
    """The settings in force.

    Args:
        kind: ``WorkerSettings``, for a worker.

    Raises:
        InvalidSettings: names every setting that is wrong.
    """
    try:
        return kind(_env_file=env_file)  # type: ignore[call-arg]  # pydantic-settings' own
    except ValidationError as error:
        lines = [_line(problem) for problem in error.errors(include_url=False)]
        lines += [
            f"{name} is no setting and is not read: did you mean {near}?"
            for name, near in settings_typos_now(env_file).items()
        ]
        raise InvalidSettings("\n".join(lines)) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8; save it as UTF-8"
        where = getattr(error, "filename", None) or env_file
        raise InvalidSettings(f"{where}: cannot be read ({reason})") from None


def warn_about_names(env_file: Path | None = Path(".env")) -> None:
    """Log the names of settings that are outdated, and those that are probably typos."""
    for old in sorted(_given(env_file).keys() & RENAMED.keys()):
        new = RENAMED[old].upper()
        log.warning("%s is now %s: rename it, the next release ignores it", old.upper(), new)
    for name, near in settings_typos_now(env_file).items():
        log.warning("%s is no setting and is not read: did you mean %s?", name, near)


def _given(env_file: Path | None) -> dict[str, str | None]:
    """Every name in the environment and in the file, in small letters, with its value."""
    in_file = DotEnvSettingsSource(Settings, env_file=env_file).env_vars
    return {**in_file, **{name.lower(): value for name, value in os.environ.items()}}


def settings_typos_now(env_file: Path | None = Path(".env")) -> dict[str, str]:
    """Names in the environment and in a file that look like a setting's, misspelt, with it."""
    given = {name: value for name, value in _given(env_file).items() if name not in RENAMED}
    return settings_typos(given, [name.upper() for name in Settings.model_fields])


_REMEDIES = {
    "int_parsing": "give a whole number",
    "float_parsing": "give a number",
    "finite_number": "give a finite number",
    "bool_parsing": "give true or false",
    "literal_error": "give {expected}",
    "greater_than": "give more than {gt:g}",
    "greater_than_equal": "give {ge:g} or more",
    "less_than_equal": "give {le:g} or less",
}
"""Pydantic's kinds of problems in our words."""


def _line(problem: Any) -> str:
    name = str(problem["loc"][0])
    remedy = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] in _REMEDIES:
        remedy = _REMEDIES[problem["type"]].format(**problem.get("ctx", {}))
    value = problem["input"]
    if remedy.startswith((name.upper(), "BASE_MODEL ")):
        return remedy
    if value is None:
        return f"{name.upper()} is not set: {remedy}"
    shown = "***" if is_secret(Settings.model_fields[name]) else repr(str(value))
    return f"{name.upper()}={shown}: {remedy}"


def is_secret(setting: FieldInfo) -> bool:
    """Whether a setting's value must never be shown."""
    return "SecretStr" in str(setting.annotation)


def environment_on_gpu(settings: Settings, gpu: str, index: int) -> dict[str, str]:
    """The environment of one worker of several under one command.

    Args:
        gpu: its number, as the driver counts.
        index: its number in the fleet: its status page is that many ports further on.
    """
    changes = {"CUDA_VISIBLE_DEVICES": gpu}
    if settings.worker_name is not None:
        changes["WORKER_NAME"] = f"{settings.worker_name}-gpu{gpu}"
    if settings.status_port:
        changes["STATUS_PORT"] = str(settings.status_port + index)
    return {**os.environ, **changes}
