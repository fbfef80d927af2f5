"""The contract documents are current, valid, and agree with the code."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from asyncapi3.models.asyncapi import AsyncAPI3
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from pydantic import BaseModel, ValidationError

from adapters.rabbitmq import message_properties
from adapters.schemas.bodies import CompleteBody, FailedBody, ProgressBody
from adapters.schemas.task import TaskReader
from domain.location import Location
from domain.parameters import LIMITS, PARAMETER_NAMES, RequestedParameters, TrainingParameters
from domain.task import InvalidTask
from entrypoints.settings import Settings
from tools.docs import documents
from tools.docs.asyncapi import TOPOLOGY

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ASYNCAPI: dict[str, Any] = yaml.safe_load((DOCS / "asyncapi.yaml").read_text(encoding="utf-8"))
OPENAPI: dict[str, Any] = yaml.safe_load((DOCS / "openapi.yaml").read_text(encoding="utf-8"))
BODIES: dict[str, type[BaseModel]] = {
    "progress": ProgressBody,
    "complete": CompleteBody,
    "failed": FailedBody,
}
Message = dict[str, Any]


def _schema(document: dict[str, Any], name: str) -> Draft202012Validator:
    root = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return Draft202012Validator(root, format_checker=Draft202012Validator.FORMAT_CHECKER)


def _task() -> Message:
    example: Message = ASYNCAPI["components"]["messages"]["task"]["examples"][0]["payload"]
    return copy.deepcopy(example)


def _calls() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in OPENAPI["paths"].items():
        for call in methods.values():
            yield path.rpartition("/")[2], call


def test_the_documents_are_what_the_code_says() -> None:
    assert documents.stale(ROOT) == [], "run python -m tools.docs.documents"


def test_an_outdated_document_is_detected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert documents.main(["--out", str(tmp_path)]) == 0
    assert documents.main(["--out", str(tmp_path), "--check"]) == 0
    (tmp_path / "docs" / "openapi.yaml").write_text("openapi: 3.1.0\n")
    assert documents.main(["--out", str(tmp_path), "--check"]) == 1
    assert "openapi.yaml is not current" in capsys.readouterr().out


def test_openapi_passes_an_independent_validator() -> None:
    validate(OPENAPI)


def test_asyncapi_passes_an_independent_validator() -> None:
    AsyncAPI3.model_validate(ASYNCAPI)


def test_the_independent_validator_rejects_invalid_asyncapi() -> None:
    broken = copy.deepcopy(ASYNCAPI)
    broken["channels"]["tasks"]["adress"] = broken["channels"]["tasks"].pop("address")
    with pytest.raises(ValidationError):
        AsyncAPI3.model_validate(broken)


def test_every_pointer_in_a_document_has_its_target() -> None:
    for document in (ASYNCAPI, OPENAPI):
        pointers = list(_pointers(document))
        assert pointers
        for pointer in pointers:
            target: Any = document
            for part in pointer.removeprefix("#/").split("/"):
                target = target[part.replace("~1", "/")]


def _pointers(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _pointers(value)
    elif isinstance(node, list):
        for item in node:
            yield from _pointers(item)


def test_the_example_task_is_accepted_by_the_schema_and_by_the_code() -> None:
    _schema(ASYNCAPI, "TaskMessage").validate(_task())
    task = TaskReader("stylelicense.com")(json.dumps(_task()).encode())
    assert (task.style_id, len(task.images)) == (123, 10)
    assert task.requested == RequestedParameters(_task()["data"]["parameters"])


@pytest.mark.parametrize(
    "key",
    ["k", "a/b c/é.jpg", "..k", ".a/b", "...", "", "/k", "a//b", "a/", "../b", "a/./b", "a/..",
     "a\\b", "a\nb", "a\x7f"],
)  # fmt: skip
def test_the_schema_and_the_code_accept_the_same_keys(key: str) -> None:
    message, accepted = _task(), True
    message["data"]["images"] = [f"s3://bucket/{key}"]
    try:
        TaskReader("stylelicense.com")(json.dumps(message).encode())
    except InvalidTask:
        accepted = False
    assert _schema(ASYNCAPI, "TaskMessage").is_valid(message) == accepted


@pytest.mark.parametrize(("name", "call"), list(_calls()), ids=[name for name, _ in _calls()])
def test_the_example_webhooks_are_accepted_by_the_schema_and_by_the_code(
    name: str, call: dict[str, Any]
) -> None:
    content = call["requestBody"]["content"]["application/json"]
    body = content["example"]
    _schema(OPENAPI, content["schema"]["$ref"].rpartition("/")[2]).validate(body)
    assert BODIES[name].model_validate(body).model_dump() == body


@pytest.mark.parametrize(("name", "call"), list(_calls()), ids=[name for name, _ in _calls()])
def test_only_a_rejected_completion_call_is_documented_as_dead_lettered(
    name: str, call: dict[str, Any]
) -> None:
    responses = [response["description"] for response in call["responses"].values()]
    rejected = sum("dead letters" in text for text in responses)
    dropped = sum("call is dropped" in text for text in responses)
    assert (rejected, dropped) == ((0, 8) if name == "progress" else (5, 0))


def test_the_example_images_are_in_a_bucket_that_the_default_settings_allow() -> None:
    allowed = Settings.model_fields["aws_storage_bucket_name"].default
    assert {Location.parse(image).bucket for image in _task()["data"]["images"]} == {allowed}


def test_headers_of_waiting_and_dead_messages_are_as_described() -> None:
    waiting = message_properties.delayed(message_properties.new_task(), "the store is unavailable")
    since = datetime(2026, 1, 1, tzinfo=UTC)
    dead = message_properties.dead_letter(
        message_properties.new_task(), "no task", {"field": "data"}, "worker-1", since
    )
    _schema(ASYNCAPI, "WaitingHeaders").validate(waiting.headers)
    _schema(ASYNCAPI, "DeadHeaders").validate(dead.headers)
    assert not _schema(ASYNCAPI, "DeadHeaders").is_valid(waiting.headers)


def test_every_queue_of_ours_is_described() -> None:
    described = set()
    for channel in ASYNCAPI["channels"].values():
        pauses = channel.get("parameters", {}).get("pause", {}).get("enum", [""])
        described |= {channel["address"].replace("{pause}", pause) for pause in pauses}
    assert described == set(TOPOLOGY.names)


def test_every_parameter_is_described_with_its_default() -> None:
    described = ASYNCAPI["components"]["schemas"]["TrainingParameters"]["properties"]
    assert described.keys() == PARAMETER_NAMES == LIMITS.keys()
    resolved = RequestedParameters().resolve(image_count=10, native_resolution=512)
    for name, schema in described.items():
        assert schema["description"], name
        if "default" in schema:
            default = schema["default"]
            assert getattr(resolved, name) == (tuple(default) if default == [] else default), name
    assert isinstance(resolved, TrainingParameters)


def _with(path: str, value: Any) -> Callable[[Message], None]:
    def change(message: Message) -> None:
        *parents, last = path.split(".")
        node = message
        for parent in parents:
            node = node[parent]
        node[last] = value

    return change


def _without(path: str) -> Callable[[Message], None]:
    def change(message: Message) -> None:
        *parents, last = path.split(".")
        node = message
        for parent in parents:
            node = node[parent]
        del node[last]

    return change


def _parameter(name: str, value: Any) -> Callable[[Message], None]:
    return _with(f"data.parameters.{name}", value)


ACCEPTED = [
    _without("created_at"),
    _with("created_at", None),
    _without("callback_url"),
    _with("webhook_url", "https://elsewhere.example/"),
    _with("priority", 3),
    _without("data.tags"),
    _with("data.tags", None),
    _without("data.parameters"),
    _with("data.parameters", None),
    _with("data.parameters", {"not_ours": 1}),
    _with("data.style_id", 2**63 - 1),
    *(_parameter(name, None) for name in LIMITS),
    _parameter("epochs", 10_000),
    _parameter("resolution", 768),
    _parameter("learning_rate", 0.1),
    _parameter("sample_prompts", ["a cat"] * 8),
    _parameter("lr_scheduler", "linear"),
    _parameter("lora_targets", "attention+ff"),
    _with("data.parameters", {"optimizer": "prodigy", "learning_rate": 2.0}),
    _parameter("random_flip", True),
    _parameter("caption_dropout", 1),
]
REJECTED = [
    _without("type"),
    _with("type", "image_generation"),
    _without("task_id"),
    _with("task_id", 7),
    _with("task_id", "not-a-uuid"),
    _with("created_at", 7),
    _without("data"),
    _with("data", []),
    _without("data.style_id"),
    _with("data.style_id", 0),
    _with("data.style_id", "123"),
    _with("data.style_id", True),
    _with("data.style_id", 2**63),
    _with("data.images", []),
    _with("data.images", ["s3://b/k"] * 101),
    _with("data.images", ["https://b/k"]),
    _with("data.images", ["s3://b"]),
    _with("data.tags", "watercolor"),
    _with("data.tags", ["t"] * 51),
    _with("data.tags", ["t" * 101]),
    _with("data.parameters", []),
    _parameter("epochs", 0),
    _parameter("epochs", 10_001),
    _parameter("epochs", "200"),
    _parameter("resolution", 500),
    _parameter("learning_rate", 0),
    _parameter("learning_rate", 11),
    _parameter("batch_size", 65),
    _parameter("rank", True),
    _parameter("seed", 2**32),
    _parameter("trigger_word", " "),
    _parameter("trigger_word", "w" * 101),
    _parameter("sample_prompts", "a cat"),
    _parameter("sample_prompts", ["a cat"] * 9),
    _parameter("lr_scheduler", "sideways"),
    _with("data.parameters", {"optimizer": "adamw", "learning_rate": 2.0}),
    _with("data.parameters", {"optimizer": "prodigy", "learning_rate": 20.0}),
    _parameter("random_flip", 1),
    _parameter("caption_dropout", 1.1),
]


@pytest.mark.parametrize(
    ("change", "good"),
    [*((change, True) for change in ACCEPTED), *((change, False) for change in REJECTED)],
)
def test_the_schema_and_the_code_agree_on_a_changed_task(
    change: Callable[[Message], None], good: bool
) -> None:
    message = _task()
    change(message)
    try:
        TaskReader(None)(json.dumps(message).encode())
        accepted = True
    except InvalidTask:
        accepted = False
    assert accepted is good
    assert _schema(ASYNCAPI, "TaskMessage").is_valid(message) is good


def test_the_guides_example_is_a_task_except_for_its_number_of_images() -> None:
    page = (DOCS / "platform.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    message = json.loads(example)
    message["data"]["images"] *= 5
    task = TaskReader("stylelicense.com")(json.dumps(message).encode())
    assert (task.style_id, len(task.images), task.tags) == (123, 10, ("watercolor", "portrait"))
    assert dict(task.requested.named) == message["data"]["parameters"]


def test_every_parameter_of_a_webhook_has_a_type() -> None:
    """Some client generators skip a call whose header is a ``const`` without a type."""
    for name, parameter in OPENAPI["components"]["parameters"].items():
        assert parameter["schema"].get("type") == "string", name
