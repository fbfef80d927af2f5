"""All settings with defaults and checks: the only module that reads the environment."""

from __future__ import annotations

import logging
import os
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    DirectoryPath,
    Field,
    FilePath,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from adapters.common.devices import parse_devices, parse_visible
from adapters.common.files import why_not_writable
from adapters.gcs.options import check_emulator
from adapters.rabbitmq.options import RabbitOptions, TlsOptions, check_host, check_queue
from adapters.s3.options import AddressingStyle, check_endpoint
from adapters.status_page.binding import check_binding
from adapters.status_page.configuration import is_secret
from adapters.webhook.options import WebhookOptions, check_token, checked_address
from application.lease import MAX_SECONDS, LeaseTerms
from application.worker_config import WorkerConfig
from application.worker_loop import WorkerLoop
from domain.errors import UserError
from domain.location import Bucket
from entrypoints.options import option_of

log = logging.getLogger(__name__)
logging.getLogger("dotenv").setLevel(logging.ERROR)

DEFAULTS = WorkerConfig()
"""The use cases' configuration if no setting changes it."""
MAX_JOBS_TOGETHER = 32
"""Most concurrent jobs of one worker: each has a lease and threads, and GPU memory usually allows
fewer."""
DAY = 86_400.0
"""Seconds; upper limit of all timeouts and pauses."""
WEEK = 7 * DAY
"""Seconds; longer than any job, and in milliseconds below the 2**31 limit of some brokers."""

RENAMED = {
    "fewest_pictures": "min_images",
    "most_setbacks": "max_failures",
    "least_disk_gb": "min_disk_gb",
    "grace_seconds": "shutdown_timeout",
}
"""Setting names of version 0.1. This release still reads them if the new name is not set."""
PLATFORM_NAMES = {
    "rabbitmq_password": "rabbitmq_pass",
    "rabbitmq_training_queue": "rabbitmq_queue",
    "backend_url": "backend_api_url",
    "checkpoint_interval": "checkpoint_every",
}
"""The platform's own setting names, read if our name is not set."""

NEAR = 0.86
"""Smallest similarity ratio (difflib) of a typo: RABBITMQ_PASSWORD is above it for RABBITMQ_PASS;
the settings of the broker's container (RABBITMQ_DEFAULT_PASS, RABBITMQ_NODE_PORT) are below."""
NAMES_OF_OTHERS = frozenset({"aws_endpoint_url", "statsd_host", "statsd_port"})
"""Settings of boto3 and other programs that resemble ours by chance."""


class InvalidSettings(UserError):
    """At least one setting is wrong; each line of the text names one and its remedy."""


def _check(check: Callable[[Any], object], remedy: str | None = None) -> AfterValidator:
    """Run a check that raises ``ValueError``, with its own remedy unless one is given here."""

    def checked(value: Any) -> Any:
        try:
            check(value)
        except ValueError as error:
            raise ValueError(remedy or str(error)) from None
        return value

    return AfterValidator(checked)


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _distinct_delays(value: tuple[float, ...]) -> tuple[float, ...]:
    if not value or any(not 0.001 <= delay <= DAY for delay in value):
        raise ValueError("give one or more seconds, each from 0.001 to a day")
    return tuple(sorted(set(value)))


def _check_number_of_jobs(value: str) -> None:
    if value != "auto" and not (value.isdecimal() and 1 <= int(value) <= MAX_JOBS_TOGETHER):
        raise ValueError(f"give `auto`, or a number from 1 to {MAX_JOBS_TOGETHER}")


def _load(tls: TlsOptions, remedy: str) -> None:
    """Check that TLS files can be loaded."""
    try:
        tls.context()
    except OSError as error:
        raise ValueError(f"{remedy} ({error.strerror or error})") from None


Devices = Annotated[str, AfterValidator(lambda text: ",".join(parse_devices(text)))]
JobsTogether = Annotated[str, _check(_check_number_of_jobs)]
BrokerHost = Annotated[str, _check(check_host)]
BrokerUrl = Annotated[SecretStr, _check(lambda u: RabbitOptions.from_url(u.get_secret_value()))]
QueueName = Annotated[str, _check(check_queue)]
RetryDelays = Annotated[
    tuple[float, ...], BeforeValidator(_split), AfterValidator(_distinct_delays)
]
CaFile = Annotated[
    FilePath, _check(lambda file: _load(TlsOptions(ca_file=file), "give certificates in PEM"))
]
S3Endpoint = Annotated[str, _check(check_endpoint)]
EmulatorUrl = Annotated[str, _check(check_emulator)]
BucketName = Annotated[str, _check(Bucket, "give the name alone, without a scheme or a folder")]
BucketInAStore = Annotated[
    str, _check(partial(Bucket.parse, scheme="s3"), "give name, s3://name or gs://name alone")
]
WorkerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
BucketsInStores = Annotated[tuple[BucketInAStore, ...], BeforeValidator(_split)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(str.upper)]


class Settings(BaseModel):
    """The values of the settings. ``load_settings`` reads them from the environment and `.env`.

    The text below a setting is its description on the settings page and the status page.
    A check that needs two settings is a validator of the later one, so that one run reports all
    problems.
    """

    model_config = ConfigDict(
        extra="ignore", validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    _given: dict[str, str] = PrivateAttr(default_factory=dict)
    """Every name in the environment and in `.env`, in lower case, with its value."""
    _ignored: list[str] = PrivateAttr(default_factory=list)
    """A text for each line of `.env` that is not a setting."""

    base_model: str | None = None
    """Base model: a diffusers folder, a `.safetensors` checkpoint or a hub name. Default: Stable
    Diffusion 1.5; without a broker, and for `train`, the small base if a GPU or the hub is
    missing"""
    base_model_config: DirectoryPath | None = None
    """Folder with the configuration of a single-file base model, for machines without access to
    the hub"""
    caption_model: str | None = None
    """Model that captions images without a caption: a folder or a hub name of an image-to-text
    model of transformers with weights in safetensors, such as
    `Salesforce/blip-image-captioning-base`. Default: none; these images then train on the trigger
    word and the tags"""
    keep_style_words: bool = False
    """Keep words for the medium, such as "a painting of", in captions that `CAPTION_MODEL`
    makes"""
    device: Devices | None = None
    """Device to train on: `cuda`, `cuda:1`, `cpu`, or several GPUs for one job, `cuda:0,cuda:1`.
    Default: the GPU if there is one"""
    jobs_together: JobsTogether = "1"
    """Number of jobs, 1 to 32, that one worker trains in one pass over the base model, if their
    LoRA settings match. `auto`: as many as fit into the GPU's memory, at most 8"""

    rabbitmq_host: BrokerHost | None = None
    """Broker host name. If neither this nor `RABBITMQ_URL` is set, tasks are read from
    `SPOOL_DIR`"""
    rabbitmq_port: int | None = Field(None, ge=1, le=65535)
    """Broker port. Default: 5672, or 5671 with TLS"""
    rabbitmq_user: str = "guest"
    """Broker user name"""
    rabbitmq_pass: SecretStr = SecretStr("guest")
    """Broker password"""
    rabbitmq_vhost: str = "/"
    """AMQP virtual host"""
    rabbitmq_url: BrokerUrl | None = None
    """Broker URL, `amqp://` or `amqps://`; replaces host, port, user, password and virtual host"""
    rabbitmq_ssl: bool = False
    """Connect to the broker with TLS"""
    rabbitmq_ca_file: CaFile | None = None
    """CA certificates (PEM) to verify the broker with. Default: the system's"""
    rabbitmq_cert_file: FilePath | None = None
    """Client certificate (PEM) for the broker"""
    rabbitmq_key_file: FilePath | None = None
    """Private key (PEM) of the client certificate"""
    rabbitmq_heartbeat: int = Field(RabbitOptions.heartbeat, ge=2, le=3600)
    """AMQP heartbeat interval in seconds. A connection without traffic for up to twice this time
    is closed and opened again"""
    rabbitmq_queue: QueueName = RabbitOptions.queue
    """Task queue. The worker also declares `<queue>.dead`, and one queue for each retry delay,
    such as `<queue>.retry.30s`"""
    retry_delays: RetryDelays = RabbitOptions.retry_delays
    """Retry delays in seconds, separated by commas; each gets a queue of its own"""
    ack_timeout: int = Field(int(RabbitOptions.ack_timeout), ge=60, le=int(WEEK))
    """Acknowledgement timeout in seconds that the worker requests from the broker
    (`x-consumer-timeout`)"""
    spool_dir: Path = Path("spool")
    """Folder to read tasks from when no broker is configured"""

    storage_dir: Path | None = None
    """Folder that replaces the object store; each bucket is a subfolder. Default without a broker:
    `spool/buckets`"""
    aws_access_key_id: str | None = None
    """S3 access key ID. Default: boto3's credential chain (role, profile)"""
    aws_secret_access_key: SecretStr | None = None
    """S3 secret access key"""
    aws_session_token: SecretStr | None = None
    """AWS session token (temporary credentials)"""
    aws_s3_region_name: str = "us-east-1"
    """AWS region of the buckets"""
    s3_endpoint_url: S3Endpoint | None = None
    """URL of an S3-compatible store such as MinIO. Default: AWS"""
    s3_addressing_style: AddressingStyle | None = None
    """Where requests to S3 name the bucket: `path` (host/bucket), `virtual` (bucket.host) or
    `auto`. Default: `auto` at AWS, `path` at `S3_ENDPOINT_URL`"""
    aws_storage_bucket_name: BucketName = "stylelicense-training-data"
    """Bucket with the training images"""
    gcs_bucket_name: BucketName | None = None
    """The platform's bucket in Google Cloud Storage: images come from it, and weights go to it
    unless `MODEL_BUCKET_NAME` is set"""
    gcs_project_id: str | None = None
    """Google Cloud project. Default: the one that the credentials name"""
    google_application_credentials: Path | None = None
    """Credentials file for Google Cloud Storage. Default: Application Default Credentials, such as
    the machine's service account"""
    storage_emulator_host: EmulatorUrl | None = None
    """Address of an emulator of Google Cloud Storage, such as `http://host:port`"""
    model_bucket_name: BucketInAStore = "stylelicense-models"
    """Bucket of the weights: a name, or with its store `s3://name` or `gs://name`. If only
    `GCS_BUCKET_NAME` is set, weights go to that bucket"""
    state_bucket_name: BucketInAStore | None = None
    """Bucket of journals, leases, checkpoints, reports and logs, written like `MODEL_BUCKET_NAME`.
    Default: the bucket of the weights. Set it if browsers can read that bucket"""
    allowed_image_buckets: BucketsInStores = ()
    """Buckets that images may come from, separated by commas; `s3://name` or `gs://name` allows
    the bucket in that store only. Default: `AWS_STORAGE_BUCKET_NAME` and `GCS_BUCKET_NAME`"""
    weights_form: Literal["file", "folder"] | None = None
    """`file`: `models/style_<id>.safetensors` for diffusers, ComfyUI and AUTOMATIC1111. `folder`:
    a PEFT folder below `models/style-<id>/` with that file beside it. Default: `folder` if weights
    go to Google Cloud Storage, else `file`"""

    backend_allow_http: bool = False
    """Accept an `http://` address in `BACKEND_API_URL`; for private networks only, because others
    on the network can read the token"""
    backend_allow_short_token: bool = False
    """Accept an `INTERNAL_API_TOKEN` of fewer than 32 characters; for development"""
    backend_api_url: str | None = None
    """Backend URL for the webhooks; HTTPS unless the host is a loopback address. Required when a
    broker is configured; without it, outcomes are printed"""
    internal_api_token: SecretStr | None = None
    """Bearer token for the backend, at least 32 characters"""
    backend_ca_file: CaFile | None = None
    """CA certificates (PEM) to verify the backend with. Default: the system's"""
    webhook_timeout: float = Field(WebhookOptions.read_timeout, gt=0, le=300)
    """Seconds to wait for the backend's response to a webhook. Set it above the timeout of any
    proxy in between (by default 60 in nginx and in AWS load balancers)"""

    worker_name: WorkerName | None = None
    """Beginning of this worker's name in leases and logs; process ID and a random suffix follow,
    because no two workers may have one name. Default: the host name"""
    min_images: int = Field(DEFAULTS.min_images, ge=1, le=100)
    """Minimum number of usable images; a job with fewer fails"""
    checkpoint_every: int = Field(DEFAULTS.checkpoint_every, ge=1)
    """Epochs between two checkpoints"""
    preview_share: float = Field(DEFAULTS.preview_share, ge=0, le=1)
    """Share of the training time that previews at checkpoints and their scores may take; 0 turns
    off all previews, those of the report too"""
    keep_checkpoints: int = Field(1, ge=0)
    """Number of latest checkpoints to keep of a finished job, in addition to the best epoch's; 0
    deletes all"""
    progress_every: float = Field(DEFAULTS.progress_every, gt=0, le=DAY)
    """Seconds between two progress webhooks"""
    idle_seconds: float = Field(WorkerLoop.idle_seconds, gt=0, le=DAY)
    """Seconds without a task after which a worker with `--once` exits"""
    cancel_poll: float = Field(DEFAULTS.cancel_poll, gt=0, le=DAY)
    """Seconds between two checks for a cancellation"""
    lease_seconds: float = Field(DEFAULTS.lease.seconds, ge=3, le=MAX_SECONDS)
    """Lease term in seconds, at most an hour and at least 1.5 times `WEBHOOK_TIMEOUT`. After one
    to two terms without renewal another worker takes the job over"""
    max_failures: int = Field(DEFAULTS.max_failures, ge=1)
    """Number of failures in a row, without a new checkpoint in between, after which the job
    fails"""
    max_job_steps: int = Field(100_000, ge=1)
    """Maximum product of a task's epochs and images; a task above it is rejected as
    `INVALID_TASK`"""
    max_resolution: int = Field(1024, ge=64, le=2048)
    """Maximum `resolution` of a task in pixels; a task above it is rejected as `INVALID_TASK`"""
    min_disk_gb: float = Field(1.0, ge=0)
    """Minimum free disk space in GB; with less, the worker receives no tasks"""
    fetch_concurrency: int = Field(DEFAULTS.fetch_concurrency, ge=1, le=64)
    """Number of images to download in parallel"""
    shutdown_timeout: float = Field(25.0, gt=0, le=DAY)
    """Seconds from SIGTERM until the process exits, finished or not. Kubernetes grants 30 s,
    RunPod spot pods 5 s"""
    log_level: LogLevel = "INFO"
    """Log level: `DEBUG`, `INFO`, `WARNING` or `ERROR`"""
    log_format: Literal["auto", "text", "json"] = "auto"
    """Log format: `text`, `json`, or `auto` (text on a terminal, else JSON)"""
    sentry_dsn: SecretStr | None = None
    """Sentry DSN to report errors to; requires the extra `sentry`"""
    cloudwatch_log_group: str | None = None
    """Log group in Amazon CloudWatch that gets the log lines as JSON, in a stream named after the
    worker; the group must exist. Needs the extra `cloudwatch`. Region and credentials are those of
    S3"""
    status_host: Annotated[str, _check(check_host, "give an address alone")] = "127.0.0.1"
    """Address that the status page, metrics and health checks listen on. An address other than
    loopback requires `STATUS_TOKEN`"""
    status_port: int = Field(9108, ge=0, le=65535)
    """Port of the status page, metrics and health checks; 0 turns them off"""
    status_token: SecretStr | None = None
    """Token that the status page and metrics require, at least 16 characters"""

    @field_validator("rabbitmq_ssl")
    @classmethod
    def _check_ssl_and_url(cls, value: bool, info: ValidationInfo) -> bool:
        url = info.data.get("rabbitmq_url")
        if value and url is not None and not _is_encrypted(url):
            raise ValueError("RABBITMQ_URL is without TLS: write amqps:// in it")
        return value

    @field_validator("rabbitmq_ca_file", "rabbitmq_cert_file", "rabbitmq_key_file")
    @classmethod
    def _check_tls_is_on(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        # If one of the two is invalid itself, its own error is enough.
        known = {"rabbitmq_url", "rabbitmq_ssl"} <= info.data.keys()
        url = info.data.get("rabbitmq_url")
        encrypted = info.data.get("rabbitmq_ssl") or (url is not None and _is_encrypted(url))
        if value is not None and known and not encrypted:
            raise ValueError(
                "it has no effect without TLS: set RABBITMQ_SSL=true, or write amqps:// in "
                "RABBITMQ_URL"
            )
        return value

    @field_validator("rabbitmq_key_file")
    @classmethod
    def _check_certificate_and_key(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "rabbitmq_cert_file" not in info.data:
            return value
        certificate = info.data["rabbitmq_cert_file"]
        if (value is None) != (certificate is None):
            raise ValueError("give RABBITMQ_CERT_FILE and RABBITMQ_KEY_FILE both, or neither")
        if value is not None:
            tls = TlsOptions(certificate=certificate, key=value)
            _load(tls, "give the key of RABBITMQ_CERT_FILE, both in PEM")
        return value

    @field_validator("aws_secret_access_key")
    @classmethod
    def _check_key_id(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if (value is None) != (info.data.get("aws_access_key_id") is None):
            raise ValueError("give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY both, or neither")
        return value

    @field_validator("aws_session_token")
    @classmethod
    def _check_session(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None and info.data.get("aws_access_key_id") is None:
            raise ValueError("give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY too")
        return value

    @field_validator("backend_api_url")
    @classmethod
    def _check_address(cls, value: str | None, info: ValidationInfo) -> str | None:
        allowed = bool(info.data.get("backend_allow_http"))
        return value if value is None else checked_address(value, allow_http=allowed)

    @field_validator("internal_api_token")
    @classmethod
    def _check_token(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None:
            allowed = bool(info.data.get("backend_allow_short_token"))
            check_token(value.get_secret_value(), allow_short=allowed)
        return value

    @property
    def has_broker(self) -> bool:
        """Whether tasks come from RabbitMQ."""
        return self.rabbitmq_host is not None or self.rabbitmq_url is not None

    @property
    def has_object_store(self) -> bool:
        """Whether blobs are in object stores: if a broker or an object store is configured."""
        stores = (self.s3_endpoint_url, self.gcs_bucket_name, self.storage_emulator_host)
        return self.storage_dir is None and (self.has_broker or any(stores))

    @property
    def storage_folder(self) -> Path:
        """The folder of buckets that replaces an object store."""
        return self.storage_dir or self.spool_dir / "buckets"

    @property
    def work_folder(self) -> Path:
        """The folder in which a worker needs free space."""
        return Path(gettempdir()) if self.has_object_store else self.storage_folder

    @property
    def models(self) -> Bucket:
        """The bucket of the weights."""
        return self._bucket_of_setting("model_bucket_name")

    @property
    def state(self) -> Bucket:
        """The bucket of journals, leases, checkpoints, reports and logs."""
        if self.state_bucket_name is None:
            return self.models
        return self._bucket(self.state_bucket_name, self.models.scheme)

    @property
    def weights_in_folder(self) -> bool:
        """Whether finished weights are stored as PEFT's folder."""
        form = self.weights_form or ("folder" if self.models.scheme == "gs" else "file")
        return form == "folder"

    @property
    def images(self) -> Bucket:
        """The bucket that a folder of images is uploaded to."""
        return self._bucket_of_setting("aws_storage_bucket_name")

    @property
    def image_buckets(self) -> tuple[Bucket, ...]:
        """The buckets that images may come from. A name without a scheme allows every store."""
        names = self.allowed_image_buckets
        buckets = [self._bucket(name, scheme) for name in names for scheme in self.schemes]
        if not names:
            buckets = [self.images]
            if self.gcs_bucket_name is not None:
                buckets.append(self._bucket(self.gcs_bucket_name, "gs"))
        return tuple(dict.fromkeys(buckets))

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes of the object stores in use, the weights' first; always ``s3`` for
        folders."""
        if not self.has_object_store:
            return ("s3",)
        allowed = [name.split("://")[0] for name in self.allowed_image_buckets if "://" in name]
        schemes = [self.models.scheme, self.state.scheme, self.images.scheme, *allowed]
        if self.gcs_bucket_name is not None:
            schemes.append("gs")
        return tuple(dict.fromkeys(schemes))

    def _bucket_of_setting(self, setting: str) -> Bucket:
        """The bucket of a setting whose default is ``GCS_BUCKET_NAME``, if that is set."""
        if self.gcs_bucket_name is not None and setting not in self.model_fields_set:
            return self._bucket(self.gcs_bucket_name, "gs")
        return self._bucket(getattr(self, setting), "s3")

    def _bucket(self, name: str, scheme: str) -> Bucket:
        """The bucket of a name; with folders, the scheme is ignored."""
        bucket = Bucket.parse(name, scheme)
        return bucket if self.has_object_store else Bucket(bucket.name)

    def warnings(self) -> list[str]:
        """One line for each ignored line of `.env` and for each probably misspelt setting."""
        return self._ignored + settings_typos(self._given)

    def aws_options(self) -> dict[str, Any]:
        """Region and credentials, as options of the adapters for Amazon's services."""
        secret, token = self.aws_secret_access_key, self.aws_session_token
        return {
            "region": self.aws_s3_region_name,
            "access_key_id": self.aws_access_key_id,
            "secret_access_key": secret.get_secret_value() if secret else None,
            "session_token": token.get_secret_value() if token else None,
        }

    def secrets(self) -> tuple[str, ...]:
        """All secrets, so that logs can hide them."""
        values = dict(self).values()
        texts = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
        if self.rabbitmq_url is not None:
            password = urlsplit(self.rabbitmq_url.get_secret_value()).password or ""
            texts += [password, unquote(password)]
        return tuple(text for text in texts if text and text != "guest")


class WorkerSettings(Settings):
    """Settings with the additional checks of workers, which train and notify."""

    @field_validator("jobs_together")
    @classmethod
    def _check_one_job_on_several_gpus(cls, value: str, info: ValidationInfo) -> str:
        if value != "1" and "," in (info.data.get("device") or ""):
            raise ValueError("give 1: DEVICE names several GPUs for one job")
        return value

    @field_validator("spool_dir")
    @classmethod
    def _check_spool_is_writable(cls, value: Path, info: ValidationInfo) -> Path:
        known = {"rabbitmq_host", "rabbitmq_url"} <= info.data.keys()
        # Fail early: a worker would retry forever to open a queue in an unusable folder.
        if known and not _has_broker(info) and (reason := why_not_writable(value)):
            raise ValueError(f"{reason}; give a folder that this worker can write")
        return value

    @field_validator("backend_api_url")
    @classmethod
    def _require_backend(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and _has_broker(info):
            raise ValueError("give the backend's URL; a broker requires it")
        return value

    @field_validator("internal_api_token")
    @classmethod
    def _require_token(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None and info.data.get("backend_api_url"):
            raise ValueError("give the token of the backend at BACKEND_API_URL")
        return value

    @field_validator("lease_seconds")
    @classmethod
    def _check_lease_outlasts_webhook(cls, value: float, info: ValidationInfo) -> float:
        timeout = info.data.get("webhook_timeout", 0.0)
        if info.data.get("backend_api_url") and LeaseTerms(value).takeover_delay < timeout:
            raise ValueError(
                f"give {1.5 * timeout:g} or more, for WEBHOOK_TIMEOUT={timeout:g}: with less, "
                "another worker could take the job over while its outcome webhook is being sent"
            )
        return value

    @field_validator("status_token")
    @classmethod
    def _check_binding(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if info.data.get("status_port") and info.data.get("status_host"):
            check_binding(
                info.data["status_host"], None if value is None else value.get_secret_value()
            )
        return value


def _has_broker(info: ValidationInfo) -> bool:
    return bool(info.data.get("rabbitmq_host") or info.data.get("rabbitmq_url"))


def _is_encrypted(url: SecretStr) -> bool:
    return urlsplit(url.get_secret_value()).scheme == "amqps"


def load_settings(
    env_file: Path | None = Path(".env"),
    *,
    kind: type[Settings] = Settings,
    options: Namespace | None = None,
) -> Settings:
    """Load the settings.

    Args:
        kind: the class of settings; ``WorkerSettings`` for a worker.
        options: the parsed command line; its options replace the settings of the same names.

    Raises:
        InvalidSettings: at least one setting or option is wrong; the text lists all of them.
    """
    given, ignored = _read(env_file)
    replaced = {
        name: value
        for name, value in vars(options or Namespace()).items()
        if value is not None and name in Settings.model_fields
    }
    aliases = {**PLATFORM_NAMES, **RENAMED}
    by_alias = {name: given[alias] for alias, name in aliases.items() if alias in given}
    try:
        settings = kind.model_validate({**by_alias, **given, **replaced})
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [_line(problem, replaced) for problem in problems]
        wrong = {str(problem["loc"][0]) for problem in problems} - replaced.keys()
        lines += [
            f"{alias.upper()} is read as {name.upper()}"
            for alias, name in PLATFORM_NAMES.items()
            if name in wrong and alias in given and name not in given
        ]
        raise InvalidSettings("\n".join(lines + settings_typos(given) + ignored)) from None
    settings._given, settings._ignored = given, ignored
    if "cuda_visible_devices" in given:  # of `.env`; CUDA itself reads only the environment
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", given["cuda_visible_devices"])
    return settings


def _read(env_file: Path | None) -> tuple[dict[str, str], list[str]]:
    """All names with a value, in lower case, where those of the environment replace the file's; a
    text for each line of the file that is not a setting.

    A value from a file, such as a Kubernetes Secret, may end with a newline, which is removed.
    """
    try:
        # "-sig" skips the byte order mark of some editors, else a part of the first name.
        in_file = {} if env_file is None else dotenv_values(env_file, encoding="utf-8-sig")
        ignored = [] if env_file is None or not env_file.is_file() else _ignored_lines(env_file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8; save it as UTF-8"
        raise InvalidSettings(f"{env_file}: cannot be read ({reason})") from None
    given = {
        name.lower(): text
        for source in (in_file, os.environ)
        for name, value in source.items()
        if (text := (value or "").rstrip("\r\n"))
    }
    return given, ignored


def _ignored_lines(env_file: Path) -> list[str]:
    """A text for each line of the file that is not a setting. The library's own message is
    hidden: it names neither the file nor the remedy."""
    remedy = "is ignored: write NAME=value, and close its quotes"
    with env_file.open(encoding="utf-8-sig") as text:
        wrong = [binding.original.line for binding in parse_stream(text) if binding.error]
    return [f"{env_file}, line {line} {remedy}" for line in wrong]


def log_warnings(settings: Settings) -> None:
    """Log ignored lines of `.env`, outdated names of settings and probable typos."""
    given = settings._given
    for old in sorted(given.keys() & RENAMED.keys()):
        new = RENAMED[old].upper()
        log.warning("%s is now %s: rename it, the next release ignores it", old.upper(), new)
    for alias in sorted(given.keys() & PLATFORM_NAMES.keys()):
        name = PLATFORM_NAMES[alias]
        if name in given:
            log.info("%s is used, %s is ignored", name.upper(), alias.upper())
        else:
            log.info("%s is read as %s", alias.upper(), name.upper())
    for line in settings.warnings():
        log.warning("%s", line)


def settings_typos(given: Mapping[str, str]) -> list[str]:
    """One line for each name that is probably a misspelt setting, with the intended setting.

    Ignores a name if the setting itself is given too (the name then belongs to another program),
    and names without a value.

    Args:
        given: names in lower case, with their values.
    """
    read = {*Settings.model_fields, *RENAMED, *PLATFORM_NAMES, *NAMES_OF_OTHERS}
    lines = []
    for name in sorted(name for name, value in given.items() if value and name not in read):
        near = get_close_matches(name, Settings.model_fields, n=1, cutoff=NEAR)
        if near and not given.get(near[0]):
            lines.append(f"{name.upper()} is not a setting: did you mean {near[0].upper()}?")
    return lines


_REMEDIES = {
    "int_parsing": "give a whole number",
    "float_parsing": "give a number",
    "finite_number": "give a finite number",
    "bool_parsing": "give true or false",
    "literal_error": "give {expected}",
    "greater_than": "give more than {gt:g}",
    "greater_than_equal": "give {ge:g} or more",
    "less_than_equal": "give {le:g} or less",
    "string_pattern_mismatch": "give at most 100 of the characters A-Z, a-z, 0-9, _, . and -",
    "path_not_directory": "no such folder; give an existing one",
    "path_not_file": "no such file; give a PEM file",
}
"""Remedies by pydantic's error type."""


def _line(problem: Any, options: Mapping[str, Any]) -> str:
    name = str(problem["loc"][0])
    remedy = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] in _REMEDIES:
        remedy = _REMEDIES[problem["type"]].format(**problem.get("ctx", {}))
    # What precedes an @ may be a password, even in a setting that should have none.
    value = re.sub(r"(?s).*@", "***@", str(problem["input"]))
    if name in options:
        return f"{option_of(name)} {value}: {remedy}"
    if remedy.startswith(name.upper()):
        return remedy
    if problem["input"] is None:
        return f"{name.upper()} is not set: {remedy}"
    shown = "***" if is_secret(Settings.model_fields[name]) else repr(value)
    return f"{name.upper()}={shown}: {remedy}"


def visible_gpus() -> tuple[str, ...] | None:
    """The GPUs of CUDA_VISIBLE_DEVICES; None if it is not set."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if text is None else parse_visible(text)


def environment_on_gpu(settings: Settings, gpu: str, index: int) -> dict[str, str]:
    """The environment of one worker of a fleet.

    Args:
        gpu: an entry of ``visible_gpus``, else the GPU's number, as counted by the driver.
        index: the worker's number in the fleet, added to the port of its status page.
    """
    # With DEVICE, a worker without its GPU exits; it would train on the CPU otherwise.
    changes = {"CUDA_VISIBLE_DEVICES": gpu, "DEVICE": "cuda"}
    if visible_gpus() is None:
        changes["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the driver's; by default the fastest is 0
    if settings.worker_name is not None:
        name = "-gpu" + re.sub("[^A-Za-z0-9-]", "-", gpu)
        changes["WORKER_NAME"] = settings.worker_name[: 100 - len(name)] + name
    if settings.status_port:
        changes["STATUS_PORT"] = str(settings.status_port + index)
    return {**os.environ, **changes}
