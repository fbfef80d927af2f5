"""The task: as the backend publishes it, and what a worker accepts of it."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic import ValidationError as Problems
from pydantic_core import from_json

from adapters.common.text import printable
from application.ports import MAX_MESSAGE_BYTES
from domain.limits import InvalidParameter
from domain.location import FORMS, SCHEMES, Bucket, InvalidLocation, Location
from domain.parameters import PARAMETER_NAMES, RequestedParameters, default_epochs
from domain.task import MISSING, InvalidTask, TrainingTask, ValueDescription

log = logging.getLogger(__name__)

TYPE = "model_training"
MAX_IMAGES = 100
MAX_TAGS = 50
LARGEST_STYLE_ID = 2**63 - 1

_UNUSED = ("callback_url", "webhook_url")
"""Two names of the same URL. It is never called: the token goes to the configured backend only."""
NOT_IN_A_FOLDER = ("train_text_encoder", "use_dora")
"""Parameters whose styles ``PeftModel.from_pretrained(unet, folder)`` of PEFT 0.7 fails to load or
renders wrongly."""
_KEYS_TO_THE_STYLE = {"type", "data", "style_id"}
"""If a message repeats one of them, its style is ambiguous, and the backend is not notified."""


def _uuid(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return str(UUID(value))


def _moment(value: object) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("not a text")
    moment = datetime.fromisoformat(value)
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("out of range") from None


class _Schema(BaseModel):
    # Allowed, so that unknown keys are ignored with a warning that names them.
    model_config = ConfigDict(strict=True, extra="allow", use_attribute_docstrings=True)


# As ``Location`` parses it, except for the length, which it counts in bytes.
_KEY_PART = r"(?!\.{1,2}(/|$))[^/\\\x00-\x1f\x7f]+"
_LOCATION = rf"^({'|'.join(SCHEMES)})://(?!\.{{1,2}}/)[^/]+(/{_KEY_PART})+$"
ImageLocation = Annotated[str, Field(json_schema_extra={"pattern": _LOCATION})]
Tag = Annotated[str, StringConstraints(max_length=100)]


class TaskData(_Schema):
    """The style, and the images to train it on."""

    style_id: Annotated[int, Field(ge=1, le=LARGEST_STYLE_ID)]
    """The style's id on the platform."""
    images: Annotated[list[ImageLocation], Field(min_length=1, max_length=MAX_IMAGES)]
    """The images, each as `s3://bucket/key` or `gs://bucket/key`: JPEG, PNG or WebP, at least
    256 px a side, at most 10 MB, in a bucket of the setting ALLOWED_IMAGE_BUCKETS. With fewer
    than 10 usable images the job fails; an image that is listed several times counts once. A
    caption may be stored beside an image as `<same name>.txt`."""
    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS)] | None = None
    """English keywords for the whole style."""
    parameters: dict[str, Any] | None = None
    """Training parameters. Unknown keys are ignored with a warning."""


class TaskMessage(_Schema):
    """One request for a style, as the backend publishes it."""

    # First, so that it is the one reported of several problems.
    type: Literal["model_training"]
    """Type of the message; messages of another type are rejected."""
    task_id: Annotated[str, BeforeValidator(_uuid), Field(json_schema_extra={"format": "uuid"})]
    """Identifies the request. A message that repeats it is the same request again."""
    data: TaskData
    created_at: Annotated[datetime | None, BeforeValidator(_moment)] = None
    """When the request was made, in ISO 8601; without a zone it is in UTC."""
    callback_url: Any = None
    """Accepted but never called: webhooks go to BACKEND_API_URL only."""
    webhook_url: Any = None
    """The newer name of `callback_url`; never called either."""


_REMEDIES = {
    "type": f'give "{TYPE}"',
    "task_id": "give a UUID",
    "created_at": "give a time in ISO 8601, or leave it out",
    "data": "give an object with style_id and images",
    "data.style_id": f"give a whole number from 1 to {LARGEST_STYLE_ID}",
    "data.images": f"give a list of 1 to {MAX_IMAGES} texts of the form {FORMS}",
    "data.tags": f"give a list of at most {MAX_TAGS} texts of at most 100 characters",
    "data.parameters": "give an object, or leave it out",
}


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
    in_folders: bool
    """Whether folders replace the buckets: locations may then have any scheme."""
    weights_in_folder: bool
    """Whether weights are stored as folders, which excludes ``NOT_IN_A_FOLDER``."""
    max_steps: int
    """Limit of epochs times images: a task above it would keep the worker for days."""
    max_resolution: int
    """Limit of a task's ``resolution``, in pixels."""

    def check(self, task: TrainingTask) -> None:
        """Raise ``InvalidTask`` if the task breaks a rule."""
        closed = set(self.own_buckets).difference(self.image_buckets)
        for number, image in enumerate(task.images):
            if self._bucket_of(image) in closed:
                remedy = f"give images from {', '.join(map(str, self.image_buckets))}"
                raise InvalidTask(f"data.images.{number}", str(image), remedy)
        for name in NOT_IN_A_FOLDER if self.weights_in_folder else ():
            if task.requested.named.get(name):
                remedy = "leave it out: this platform cannot load such a style (WEIGHTS_FORM)"
                raise InvalidTask(f"data.parameters.{name}", True, remedy)
        initial = task.requested.named.get("network_weights")
        if initial is not None and not self._may_start_from(initial):
            buckets = sorted({self.models, *self.image_buckets})
            remedy = f"give {FORMS} of a LoRA in one of these buckets: " + ", ".join(
                map(str, buckets)
            )
            raise InvalidTask("data.parameters.network_weights", _as_json(initial), remedy)
        images = len(set(task.images))
        epochs = task.requested.named.get("epochs") or default_epochs(images)
        if epochs * images > self.max_steps:
            product = f"and with {images} images epochs x images is {epochs * images}"
            remedy = f"give epochs x images of at most {self.max_steps} (MAX_JOB_STEPS)"
            found = ValueDescription(f"{epochs}, {product}")
            raise InvalidTask("data.parameters.epochs", found, remedy)
        resolution = task.requested.named.get("resolution")
        if resolution is not None and resolution > self.max_resolution:
            remedy = f"give at most {self.max_resolution} (MAX_RESOLUTION)"
            raise InvalidTask("data.parameters.resolution", resolution, remedy)

    def _may_start_from(self, text: str) -> bool:
        try:
            return self._bucket_of(Location.parse(text)) in {self.models, *self.image_buckets}
        except InvalidLocation:
            return False

    def _bucket_of(self, at: Location) -> Bucket:
        return Bucket(at.bucket) if self.in_folders else Bucket(at.bucket, at.scheme)


@dataclass(frozen=True)
class TaskReader:
    """Parses the JSON that the backend publishes."""

    backend_host: str | None
    """The backend's host. A message with another callback host is logged."""
    rules: TaskRules | None = None
    """None accepts every valid task."""

    def __call__(self, body: bytes) -> TrainingTask:
        """Parse the task in ``body``.

        A null parameter counts as omitted. A time without a zone is in UTC.

        Raises:
            InvalidTask: the body is not a valid task, or the task breaks a rule.
        """
        raw = _decode(body)
        repeated = _repeated_keys(body)
        try:
            if repeated:
                found = ValueDescription(f"one with {repeated[0]!r} twice")
                raise InvalidTask("message", found, "give every key once")
            task = self._read(raw)
            if self.rules is not None:
                self.rules.check(task)
            return task
        except InvalidTask as error:
            error.task_id = _readable_task_id(raw)
            if _KEYS_TO_THE_STYLE.isdisjoint(repeated):
                error.style_id = _readable_style_id(raw)
            raise

    def _read(self, raw: object) -> TrainingTask:
        try:
            message = TaskMessage.model_validate(raw)
        except Problems as problems:
            raise _translated(problems) from None
        data = message.data
        task = TrainingTask(
            task_id=message.task_id,
            style_id=data.style_id,
            images=_locations(data.images),
            tags=tuple(tag for tag in (" ".join(tag.split()) for tag in data.tags or ()) if tag),
            requested=_requested(data.parameters or {}),
            created_at=message.created_at,
        )
        self._warn(message)
        return task

    def _warn(self, message: TaskMessage) -> None:
        extra, extra_data = message.model_extra or {}, message.data.model_extra or {}
        parameters = message.data.parameters or {}
        unknown = [
            *extra,
            *(f"data.{key}" for key in extra_data),
            *(f"data.parameters.{key}" for key in parameters if key not in PARAMETER_NAMES),
        ]
        if unknown:
            names = ", ".join(map(repr, unknown))
            log.warning("task %s: unknown keys are ignored: %.1000s", message.task_id, names)
        for key in _UNUSED:
            url = getattr(message, key)
            if self.backend_host and url and _host(url) != self.backend_host:
                log.warning(
                    "task %s: %s=%.200r has another host than %s; the worker never calls it",
                    *(message.task_id, key, url, self.backend_host),
                )


def encode_task(task: TrainingTask) -> bytes:
    """The message that ``TaskReader`` parses to ``task``."""
    message = {
        "task_id": task.task_id,
        "type": TYPE,
        "data": {
            "style_id": task.style_id,
            "images": [str(image) for image in task.images],
            "tags": list(task.tags),
            "parameters": dict(task.requested.named),
        },
    }
    if task.created_at is not None:
        message["created_at"] = task.created_at.isoformat()
    return json.dumps(message).encode()


def task_id_of(body: bytes) -> str | None:
    """The task id in a message, valid or not, for finding a message."""
    try:
        raw = _decode(body)
    except InvalidTask:
        return None
    match raw:
        case {"task_id": str(task_id)}:
            return task_id
    return None


def _readable_task_id(raw: object) -> str | None:
    """The task id, if valid."""
    match raw:
        case {"task_id": str(task_id)}:
            try:
                return str(UUID(task_id))
            except ValueError:
                return None
    return None


def _decode(body: bytes) -> object:
    if len(body) > MAX_MESSAGE_BYTES:
        limit = f"send at most {MAX_MESSAGE_BYTES // 1024} KiB"
        raise InvalidTask("message", _beginning(body), limit)
    try:
        # Accepts NaN and Infinity, which Python's json may write. The field's validation rejects
        # them later, when the style is known.
        return from_json(body)
    except ValueError as error:
        remedy = f"send JSON in UTF-8 ({error})"
        raise InvalidTask("message", _beginning(body), remedy) from None


def _beginning(body: bytes) -> str:
    return body[:40].decode(errors="replace")


def _repeated_keys(body: bytes) -> list[str]:
    """The keys that one object has twice: JSON parsers differ on which value they use.

    Args:
        body: JSON that was decoded before, which limits its depth.
    """
    repeated: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        counts = Counter(key for key, _ in pairs)
        repeated.extend(key for key, count in counts.items() if count > 1)

    json.loads(body, object_pairs_hook=note, parse_int=str)  # accepts integers of any length
    return repeated


def _readable_style_id(raw: object) -> int | None:
    """The style for calls to the backend; None in another service's message."""
    match raw:
        case {"type": "model_training", "data": {"style_id": int(style_id)}}:
            usable = not isinstance(style_id, bool) and 1 <= style_id <= LARGEST_STYLE_ID
            return style_id if usable else None
    return None


def _translated(problems: Problems) -> InvalidTask:
    problem = problems.errors(include_url=False)[0]
    field = ".".join(map(str, problem["loc"])) or "message"
    value = problem["input"]
    if problem["type"] == "missing":
        found = MISSING
    elif isinstance(value, list) and problem["type"] in {"too_short", "too_long"}:
        found = ValueDescription(f"a list of {len(value)}")
    else:
        found = _as_json(value)
    known = ".".join(part for part in map(str, problem["loc"]) if not part.isdecimal())
    return InvalidTask(field, found, _REMEDIES.get(known, "give an object"))


def _as_json(value: object) -> ValueDescription:
    """A value as printable JSON."""
    return ValueDescription(printable(json.dumps(value, ensure_ascii=False)))


def _locations(images: list[str]) -> tuple[Location, ...]:
    found = []
    for number, image in enumerate(images):
        try:
            found.append(Location.parse(image))
        except InvalidLocation as error:
            remedy = f"give {FORMS} ({error})"
            raise InvalidTask(f"data.images.{number}", _as_json(image), remedy) from None
    return tuple(found)


def _requested(parameters: Mapping[str, Any]) -> RequestedParameters:
    named = {
        name: value
        for name, value in parameters.items()
        if name in PARAMETER_NAMES and value is not None
    }
    try:
        return RequestedParameters(named)
    except InvalidParameter as error:
        field = f"data.parameters.{error.name}"
        raise InvalidTask(field, _as_json(error.value), error.remedy) from None


def _host(url: object) -> str | None:
    try:
        return urlsplit(url).hostname if isinstance(url, str) else None
    except ValueError:
        return None
