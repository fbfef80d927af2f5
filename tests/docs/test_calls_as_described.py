"""Real requests to a backend match the OpenAPI document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from adapters.memory import ManualClock
from adapters.schemas.bodies import complete_body, failed_body, progress_body
from adapters.webhook.notifier import Bodies, WebhookNotifier
from adapters.webhook.options import WebhookOptions
from domain.failure import Failure, FailureCode
from domain.location import Location
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric
from tests.services.backend import ROUTES, Call
from tests.services.backend_process import BackendProcess

pytestmark = pytest.mark.integration

DOCS = Path(__file__).resolve().parents[2] / "docs"
DOCUMENT: dict[str, Any] = yaml.safe_load((DOCS / "openapi.yaml").read_text(encoding="utf-8"))
ADDRESSES = {kind: (method, path) for (method, path), kind in ROUTES.items()}


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    """One call of each kind, as a backend gets it."""
    artifact = Artifact(Location("models", "models/style_7.safetensors"), "ab" * 32, 3_000_000)
    with BackendProcess() as backend:
        options = WebhookOptions(
            base_url=backend.url, token=backend.token, user_agent="style-trainer/0"
        )
        bodies = Bodies(progress_body, complete_body, failed_body)
        notifier = WebhookNotifier(options, bodies, ManualClock())
        notifier.progress(7, Progress(5, 10, 50, 100, steps_per_second=2.0))
        notifier.completed("task", 7, artifact, TrainingMetric(0.05, 10, 100))
        notifier.failed("task", 8, Failure(FailureCode.GPU_OOM, "The card is too small."))
        notifier.close()
        return backend.calls


def _described(call: Call) -> dict[str, Any]:
    method, path = ADDRESSES[call.kind]
    described: dict[str, Any] = DOCUMENT["paths"][path][method.lower()]
    return described


def _resolved(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def test_every_route_is_described_and_called(calls: list[Call]) -> None:
    described = {
        (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    assert described == {ADDRESSES[call.kind] for call in calls} == set(ROUTES)
    assert all(call.accepted for call in calls)


def test_every_body_is_as_described(calls: list[Call]) -> None:
    for call in calls:
        content = _described(call)["requestBody"]["content"][call.headers["content-type"]]
        _resolved(content["schema"]).validate(call.body)


def test_every_header_described_is_sent(calls: list[Call]) -> None:
    for call in calls:
        names = set()
        for reference in _described(call)["parameters"]:
            parameter = DOCUMENT["components"]["parameters"][reference["$ref"].rpartition("/")[2]]
            sent = call.headers[parameter["name"].lower()]
            _resolved(parameter["schema"]).validate(sent)
            names.add(parameter["name"])
        assert ("Idempotency-Key" in names) == (call.idempotency_key is not None)
