"""The platform's messages, read and written."""

from __future__ import annotations

import copy
import json
import logging
import math
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from adapters.schemas.bodies import (
    MAX_ERROR_CHARACTERS,
    CompleteBody,
    FailedBody,
    ProgressBody,
    complete_body,
    failed_body,
    progress_body,
)
from adapters.schemas.task import TaskReader, encode_task
from application.ports import MAX_MESSAGE_BYTES
from domain.failure import Failure, FailureCode
from domain.location import Location
from domain.parameters import PARAMETER_NAMES, RequestedParameters
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric
from domain.task import InvalidTask, TrainingTask

read = TaskReader("stylelicense.com")
TASK_ID = "550e8400-e29b-41d4-a716-446655440000"
ABSENT = object()

MESSAGE: dict[str, Any] = {
    "task_id": TASK_ID,
    "type": "model_training",
    "data": {
        "style_id": 123,
        "images": [f"s3://stylelicense-media/training/123/image_{n}.jpg" for n in range(10)],
        "tags": ["watercolor", "portrait"],
        "parameters": {"epochs": 200, "learning_rate": 0.0001, "batch_size": 1},
    },
    "callback_url": "https://stylelicense.com/api/webhooks/training/complete",
    "created_at": "2025-01-20T10:00:00.000Z",
}


def with_value(path: str, value: object) -> bytes:
    """The example with one value replaced, added, or removed."""
    message = copy.deepcopy(MESSAGE)
    *above, last = (int(part) if part.isdecimal() else part for part in path.split("."))
    place: Any = message
    for part in above:
        place = place[part]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return json.dumps(message).encode()


def test_the_contracts_example_is_read() -> None:
    assert read(json.dumps(MESSAGE).encode()) == TrainingTask(
        task_id=TASK_ID,
        style_id=123,
        images=tuple(
            Location("stylelicense-media", f"training/123/image_{n}.jpg") for n in range(10)
        ),
        tags=("watercolor", "portrait"),
        requested=RequestedParameters({"epochs": 200, "learning_rate": 0.0001, "batch_size": 1}),
        created_at=datetime(2025, 1, 20, 10, tzinfo=UTC),
    )


def test_optional_fields_may_be_absent_or_null(caplog: pytest.LogCaptureFixture) -> None:
    bare = {
        "task_id": TASK_ID,
        "type": "model_training",
        "data": {"style_id": 1, "images": ["s3://b/k"]},
    }
    nulls = {
        **bare,
        "data": {**bare["data"], "tags": None, "parameters": None},  # type: ignore[dict-item] # JSON
        "created_at": None,
        "callback_url": None,
    }
    expected = TrainingTask(task_id=TASK_ID, style_id=1, images=(Location("b", "k"),))
    assert read(json.dumps(bare).encode()) == expected
    assert read(json.dumps(nulls).encode()) == expected
    assert caplog.text == ""


TOO_MANY_IMAGES = [f"s3://b/{n}" for n in range(101)]


@pytest.mark.parametrize(
    ("path", "value", "field", "remedy"),
    [
        ("type", ABSENT, "type", "model_training"),
        ("type", "image_generation", "type", "model_training"),
        ("type", 1, "type", "model_training"),
        ("task_id", ABSENT, "task_id", "UUID"),
        ("task_id", None, "task_id", "UUID"),
        ("task_id", 5, "task_id", "UUID"),
        ("task_id", "../../etc", "task_id", "UUID"),
        ("data", ABSENT, "data", "object"),
        ("data", [], "data", "object"),
        ("data.style_id", ABSENT, "data.style_id", "whole number"),
        ("data.style_id", "123", "data.style_id", "whole number"),
        ("data.style_id", True, "data.style_id", "whole number"),
        ("data.style_id", 1.0, "data.style_id", "whole number"),
        ("data.style_id", 0, "data.style_id", "from 1"),
        ("data.style_id", 2**63, "data.style_id", "to 9223372036854775807"),
        ("data.images", ABSENT, "data.images", "s3://"),
        ("data.images", "s3://b/k", "data.images", "list"),
        ("data.images", [], "data.images", "1 to 100"),
        ("data.images", TOO_MANY_IMAGES, "data.images", "1 to 100"),
        ("data.images.3", 7, "data.images.3", "s3://"),
        ("data.images.3", "https://host/x.jpg", "data.images.3", "s3://"),
        ("data.images.3", "s3://bucket/../other/x.jpg", "data.images.3", "'..'"),
        ("data.images.3", "s3://bucket", "data.images.3", "s3://"),
        ("data.tags", "watercolor", "data.tags", "list"),
        ("data.tags", ["a"] * 51, "data.tags", "at most 50"),
        ("data.tags.1", "x" * 101, "data.tags.1", "100 characters"),
        ("data.tags.1", 5, "data.tags.1", "texts"),
        ("data.parameters", [], "data.parameters", "object"),
        ("data.parameters.epochs", "200", "data.parameters.epochs", "whole number"),
        ("data.parameters.epochs", 200.0, "data.parameters.epochs", "whole number"),
        ("data.parameters.epochs", True, "data.parameters.epochs", "whole number"),
        ("data.parameters.epochs", 0, "data.parameters.epochs", "from 1"),
        ("data.parameters.learning_rate", "1e-4", "data.parameters.learning_rate", "number"),
        ("data.parameters.learning_rate", -1, "data.parameters.learning_rate", "above 0"),
        ("data.parameters.learning_rate", math.nan, "data.parameters.learning_rate", "above 0"),
        ("data.parameters.epochs", math.inf, "data.parameters.epochs", "from 1 to 10,000"),
        ("data.parameters.resolution", 500, "data.parameters.resolution", "multiple of 64"),
        ("data.parameters.trigger_word", "", "data.parameters.trigger_word", "text"),
        ("data.parameters.sample_prompts", "abc", "data.parameters.sample_prompts", "list"),
        ("data.parameters.sample_prompts", [1], "data.parameters.sample_prompts", "text"),
        ("data.parameters.sample_prompts", 5, "data.parameters.sample_prompts", "list"),
        ("data.parameters.lr_scheduler", ["x"], "data.parameters.lr_scheduler", "cosine"),
        ("data.parameters.seed", 10**30, "data.parameters.seed", "whole number"),
        ("created_at", 1700000000, "created_at", "ISO 8601"),
        ("created_at", "yesterday", "created_at", "ISO 8601"),
        ("created_at", "0001-01-01T00:00:00+23:59", "created_at", "ISO 8601"),
    ],
)
def test_an_invalid_value_is_rejected_with_field_and_remedy(
    path: str, value: object, field: str, remedy: str
) -> None:
    with pytest.raises(InvalidTask) as caught:
        read(with_value(path, value))
    assert caught.value.field == field
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)
    readable = not path.startswith(("type", "data.style_id")) and path != "data"
    assert caught.value.style_id == (123 if readable else None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not JSON",
        b"\xff\xfe{\x00}\x00",
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 1000 + b"1" + b"}" * 1000,
        b'{"type": "model_training"',
        b"{}{}",
    ],
)
def test_invalid_json_is_rejected(body: bytes) -> None:
    with pytest.raises(InvalidTask, match="send JSON in UTF-8") as caught:
        read(body)
    assert caught.value.field == "message"


@pytest.mark.parametrize("body", [b"null", b"5", b'"text"', b"[]"])
def test_json_other_than_an_object_is_rejected(body: bytes) -> None:
    with pytest.raises(InvalidTask, match="give an object"):
        read(body)


def test_the_size_of_a_message_is_limited() -> None:
    body = json.dumps(MESSAGE).encode()
    assert read(body.ljust(MAX_MESSAGE_BYTES))
    with pytest.raises(InvalidTask, match="at most 256 KiB"):
        read(body.ljust(MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize(
    ("once", "twice", "key", "style_id"),
    [
        ('"style_id": 123', '"style_id": 123, "style_id": 124', "'style_id'", None),
        ('"data":', '"data": {"style_id": 9}, "data":', "'data'", None),
        ('"epochs": 200', '"epochs": 200, "batch_size": 1', "'batch_size'", 123),
        ('"epochs": 200', '"new": [{"a\\nb": 1, "a\\nb": 2}]', r"'a\nb'", 123),
    ],
)
def test_a_duplicate_key_is_rejected_by_name(
    once: str, twice: str, key: str, style_id: int | None
) -> None:
    body = json.dumps(MESSAGE).replace(once, twice)
    with pytest.raises(InvalidTask) as caught:
        read(body.encode())
    assert str(caught.value) == f"message is one with {key} twice: give every key once"
    assert caught.value.style_id == style_id


def test_a_long_message_of_duplicate_keys_and_huge_numbers_is_rejected() -> None:
    for filling in ('"a":1,' * 40_000, f'"a":{"9" * 4000},' * 60):
        body = b"{" + filling.encode() + b'"a":1}'
        with pytest.raises(InvalidTask) as caught:
            read(body)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("path", "value", "quoted"),
    [
        ("data.images", ABSENT, "missing"),
        ("data.images", None, "null"),
        ("data.images", {"all": [True, None]}, '{"all": [true, null]}'),
        ("data.images.0", False, "false"),
        ("data.images.0", "https://host/x.jpg", '"https://host/x.jpg"'),
        ("data.parameters.epochs", True, "true"),
        ("data.parameters.sample_prompts", ["Aquarell, blau\x9b\u202e", None], "null"),
        ("task_id", "Größe\x9b\u202e\n", r'"Größe\u009b\u202e\n"'),
    ],
)
def test_a_value_is_quoted_as_json_in_the_error(path: str, value: object, quoted: str) -> None:
    with pytest.raises(InvalidTask, match=re.escape(f" is {quoted}: ")):
        read(with_value(path, value))


def test_a_list_that_is_too_long_is_reported_with_its_length() -> None:
    with pytest.raises(
        InvalidTask, match=r"data\.images is a list of 101: give a list of 1 to 100"
    ):
        read(with_value("data.images", TOO_MANY_IMAGES))


def test_a_foreign_message_has_no_style_to_report_as_failed() -> None:
    with pytest.raises(InvalidTask) as caught:
        read(with_value("type", "image_generation"))
    assert caught.value.style_id is None


def test_a_number_beyond_float_range_is_rejected() -> None:
    with pytest.raises(InvalidTask, match="learning_rate"):
        read(with_value("data.parameters.learning_rate", 10**400))


def test_the_type_is_reported_first_of_several_problems() -> None:
    with pytest.raises(InvalidTask) as caught:
        read(b'{"data": {}, "type": "other"}')
    assert caught.value.field == "type"


def test_too_few_images_are_left_to_the_use_case() -> None:
    assert len(read(with_value("data.images", ["s3://b/k"])).images) == 1


def test_an_image_listed_twice_is_two_images() -> None:
    assert len(read(with_value("data.images", ["s3://b/k"] * 2)).images) == 2


def test_the_task_id_is_normalised() -> None:
    spelled = f"{{{TASK_ID.upper()}}}"
    assert read(with_value("task_id", spelled)).task_id == TASK_ID


def test_blank_tags_are_dropped_and_the_others_stripped() -> None:
    task = read(with_value("data.tags", [" oil  paint\n", "", "  ", "画"]))
    assert task.tags == ("oil paint", "画")


def test_an_integer_is_accepted_as_a_float() -> None:
    task = read(with_value("data.parameters", {"weight_decay": 0, "alpha": 4}))
    resolved = task.requested.resolve(image_count=10, native_resolution=512)
    assert (resolved.weight_decay, resolved.network_alpha) == (0, 4.0)


def test_a_null_parameter_counts_as_omitted() -> None:
    task = read(with_value("data.parameters", {"epochs": None, "rank": 4}))
    assert dict(task.requested.named) == {"rank": 4}


def test_every_parameter_may_be_set() -> None:
    named = {
        **{"epochs": 5, "resolution": 256, "learning_rate": 1e-3, "batch_size": 2, "rank": 4},
        **{"alpha": 2.0, "seed": 7, "trigger_word": "inkwash", "sample_prompts": ["a", "b"]},
        **{"lr_scheduler": "linear", "lr_warmup_steps": 3, "weight_decay": 0.0},
        **{"max_grad_norm": 0.5, "snr_gamma": 5.0, "noise_offset": 0.1, "random_flip": True},
        **{"caption_dropout": 0.2, "lora_targets": "attention+ff", "lora_dropout": 0.1},
        **{"use_rslora": True, "use_dora": True, "optimizer": "prodigy", "lr_num_cycles": 2},
        **{"train_text_encoder": True, "text_encoder_lr": 5e-5},
        **{"lr_power": 2.0, "validation_split": 0.1, "validation_epochs": 5},
        **{"shuffle_caption": True, "keep_tokens": 1, "caption_tag_dropout_rate": 0.1},
        **{"caption_prefix": "ink,", "caption_suffix": ", wash", "max_token_length": 150},
        **{"network_weights": "s3://images/style.safetensors", "dim_from_weights": True},
        "deliver": "best",
    }
    assert named.keys() == PARAMETER_NAMES
    requested = read(with_value("data.parameters", named)).requested
    assert dict(requested.named) == {**named, "sample_prompts": ("a", "b")}


def test_times_are_converted_to_utc() -> None:
    ten = datetime(2025, 1, 20, 10, tzinfo=UTC)
    assert read(with_value("created_at", "2025-01-20T10:00:00")).created_at == ten
    seoul = read(with_value("created_at", "2025-01-20T19:00:00+09:00")).created_at
    assert seoul == ten
    assert seoul is not None
    assert seoul.tzinfo is UTC


def test_unknown_keys_are_ignored_with_one_warning_that_names_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    message = copy.deepcopy(MESSAGE)
    message["priority"] = 5
    message["data"]["artist"] = "me"
    message["data"]["parameters"]["optimiser\n"] = "lion"
    with caplog.at_level(logging.WARNING):
        assert read(json.dumps(message).encode()) == read(json.dumps(MESSAGE).encode())
    (record,) = caplog.records
    text = record.getMessage()
    for name in (TASK_ID, "'priority'", "'data.artist'", "'data.parameters.optimiser\\n'"):
        assert name in text


@pytest.mark.parametrize("key", ["callback_url", "webhook_url"])
@pytest.mark.parametrize(
    ("url", "logged"),
    [
        ("https://stylelicense.com/anything", False),
        ("https://STYLELICENSE.com:443/x", False),
        (None, False),
        ("https://evil.example/collect", True),
        ("https://stylelicense.com.evil.example/", True),
        ("https://stylelicense.com@evil.example/", True),
        ("http://[broken", True),
        (["https://stylelicense.com"], True),
    ],
)
def test_a_foreign_callback_host_is_only_logged(
    caplog: pytest.LogCaptureFixture, key: str, url: object, logged: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        assert read(with_value(key, url)).style_id == 123
    assert [key in record.getMessage() for record in caplog.records] == ([True] if logged else [])


def test_without_a_backend_no_host_is_compared(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        TaskReader(None)(with_value("callback_url", "https://evil.example"))
    assert caplog.text == ""


TASK = TrainingTask(
    task_id=TASK_ID,
    style_id=2**63 - 1,
    images=(Location("b", "Grüße/画 1.png"), Location("c", "k")),
    tags=("oil paint", "画"),
    requested=RequestedParameters(
        {"epochs": 5, "sample_prompts": ("a", "b"), "lr_scheduler": "linear"}
    ),
    created_at=datetime(2025, 1, 20, 19, 0, 0, 123456, timezone(timedelta(hours=9))),
)


@pytest.mark.parametrize(
    "task", [TASK, TrainingTask(task_id=TASK_ID, style_id=1, images=(Location("b", "k"),))]
)
def test_a_written_task_reads_back_equal_and_without_a_warning(
    task: TrainingTask, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(encode_task(task)) == task
    assert caplog.text == ""


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["model_training", TASK_ID, "s3://b/k", 10**400, "2025-01-20", "cosine"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
PATHS = [
    *("task_id", "type", "data", "created_at", "callback_url", "webhook_url", "data.style_id"),
    *("data.images", "data.images.0", "data.tags", "data.tags.0", "data.parameters"),
    *("data.parameters.epochs", "data.parameters.learning_rate", "data.parameters.alpha"),
    *("data.parameters.resolution", "data.parameters.sample_prompts", "data.parameters.seed"),
    *("data.parameters.trigger_word", "data.parameters.lr_scheduler", "data.parameters.rank"),
    *("data.parameters.random_flip", "data.parameters.unheard_of", "data.unheard_of"),
]


def reads_or_rejects(body: bytes) -> None:
    task, rejection = None, None
    try:
        task = read(body)
    except InvalidTask as error:
        rejection = error
    if rejection is not None:
        assert rejection.remedy
        assert "\n" not in str(rejection)
    if task is not None:
        assert read(encode_task(task)) == task


@settings(max_examples=60, deadline=None)
@given(st.binary())
def test_any_bytes_are_read_or_rejected(body: bytes) -> None:
    reads_or_rejects(body)


@settings(max_examples=60, deadline=None)
@given(anything)
def test_any_json_is_read_or_rejected(value: object) -> None:
    reads_or_rejects(json.dumps(value).encode())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PATHS), anything | st.just(ABSENT))
def test_a_task_with_any_one_value_changed_is_read_or_rejected(path: str, value: object) -> None:
    try:
        body = with_value(path, value)
    except KeyError:
        return
    reads_or_rejects(body)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 700), st.integers(0, 20), st.binary(max_size=6))
def test_a_corrupted_task_is_read_or_rejected(at: int, cut: int, put: bytes) -> None:
    body = json.dumps(MESSAGE).encode()
    reads_or_rejects(body[:at] + put + body[at + cut :])


def test_webhook_bodies_match_the_contract() -> None:
    progress = Progress(50, 100, 500, 1000, loss=0.1, steps_per_second=500 / 900)
    assert progress_body(10, progress) == {
        "style_id": 10,
        "progress": {
            "current_epoch": 50,
            "total_epochs": 100,
            "progress_percent": 50,
            "estimated_seconds": 900,
        },
    }
    artifact = Artifact(Location("bucket", "models/style_10.safetensors"), "ab" * 32, 5)
    assert complete_body("a-task", 10, artifact, TrainingMetric(0.05, 100, 1000)) == {
        "style_id": 10,
        "model_path": "s3://bucket/models/style_10.safetensors",
        "training_metric": {
            "loss": 0.05,
            "epochs": 100,
            "steps": 1000,
            "task_id": "a-task",
            "sha256": "ab" * 32,
        },
    }
    measured = {"best_epoch": 80, "delivered_epoch": 80, "measured_loss": 0.04, "base_loss": 0.1}
    metric = TrainingMetric(0.05, 100, 1000, **measured)  # type: ignore[arg-type]  # by name
    sent = complete_body("a-task", 10, artifact, metric)["training_metric"]
    assert sent.items() >= measured.items()
    failure = Failure(FailureCode.LOW_QUALITY_DATA, "Insufficient training data quality")
    body = failed_body(10, failure)
    assert body == {
        "style_id": 10,
        "error_message": "Insufficient training data quality",
        "error_code": "LOW_QUALITY_DATA",
    }
    assert type(body["error_code"]) is str


def test_no_remaining_time_is_invented() -> None:
    with pytest.raises(ValueError, match="speed"):
        progress_body(10, Progress(0, 100, 0, 1000))


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        ("two\nlines Grüße 画", "two\nlines Grüße 画"),
        ("  spaced \n", "spaced"),
        ("", "Training failed, and no reason was given."),
        (" \n", "Training failed, and no reason was given."),
        ("a\0b", "a\ufffdb"),
        ("a\ud800b", "a?b"),
        ("x" * MAX_ERROR_CHARACTERS, "x" * MAX_ERROR_CHARACTERS),
        ("x" * 20_000, "x" * (MAX_ERROR_CHARACTERS - 1) + "…"),
    ],
)
def test_a_message_to_the_artist_is_valid_database_text(message: str, sent: str) -> None:
    body = failed_body(10, Failure(FailureCode.TRAINING_FAILED, message))
    assert body["error_message"] == sent


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_message_can_be_sent(message: str) -> None:
    body = failed_body(10, Failure(FailureCode.TRAINING_FAILED, message))
    assert body["error_message"].strip()
    assert "\0" not in body["error_message"]
    json.dumps(body, ensure_ascii=False).encode()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_json_cannot_represent_is_not_sent(loss: float) -> None:
    artifact = Artifact(Location("bucket", "key"), "ab" * 32, 5)
    with pytest.raises(ValueError, match="loss"):
        complete_body("a-task", 10, artifact, TrainingMetric(loss, 100, 1000))


@pytest.mark.parametrize("model", [ProgressBody, CompleteBody, FailedBody])
def test_every_field_of_a_webhook_is_described(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    for part in (schema, *schema.get("$defs", {}).values()):
        assert part["description"]
        for name, field in part["properties"].items():
            assert field.get("description"), name
