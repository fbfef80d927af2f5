"""The stand-in backend itself, on whose responses other tests rely."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.services.backend_faults import Fault, FaultPlan, response
from tests.services.backend_process import BackendProcess

pytestmark = pytest.mark.integration

PROGRESS = {
    "style_id": 10,
    "progress": {
        "current_epoch": 50,
        "total_epochs": 100,
        "progress_percent": 50,
        "estimated_seconds": 900,
    },
}
COMPLETE = {
    "style_id": 10,
    "model_path": "s3://bucket/models/style_10.safetensors",
    "training_metric": {"loss": 0.05, "epochs": 100},
}
FAILED = {
    "style_id": 10,
    "error_message": "Insufficient training data quality",
    "error_code": "LOW_QUALITY_DATA",
}
CALLS = {
    "progress": ("PATCH", PROGRESS),
    "complete": ("POST", COMPLETE),
    "failed": ("POST", FAILED),
}


@pytest.fixture(scope="module")
def process() -> Iterator[BackendProcess]:
    with BackendProcess(styles=[10]) as running:
        yield running


@pytest.fixture
def backend(process: BackendProcess) -> BackendProcess:
    process.misbehave()
    process.forget()
    return process


def send(
    backend: BackendProcess,
    kind: str,
    body: Any = None,
    *,
    method: str | None = None,
    suffix: str = "",
    **headers: str | None,
) -> int:
    """The status of a call; by default the contract's example."""
    usual, example = CALLS[kind]
    named = {
        "Authorization": f"Bearer {backend.token}",
        "X-Request-Source": "training-server",
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    reply = requests.request(
        method or usual,
        f"{backend.url}/api/webhooks/training/{kind}{suffix}",
        json=example if body is None else body,
        headers=named,
        timeout=10,
        allow_redirects=False,
    )
    assert reply.json()["success"] is (reply.status_code == 200)
    return reply.status_code


@pytest.mark.parametrize("kind", CALLS)
def test_the_contracts_examples_are_accepted_repeatedly(
    backend: BackendProcess, kind: str
) -> None:
    assert [send(backend, kind, Idempotency_Key="k") for _ in range(3)] == [200] * 3
    assert [call.accepted for call in backend.calls] == [True] * 3
    assert backend.repeats == ({} if kind == "progress" else {"k": 2})


@pytest.mark.parametrize("kind", CALLS)
def test_invalid_calls_are_rejected_as_in_the_contract(backend: BackendProcess, kind: str) -> None:
    assert send(backend, kind, Authorization=None) == 401
    assert send(backend, kind, Authorization="Bearer wrong") == 401
    assert send(backend, kind, Authorization=f"Token {backend.token}") == 401
    assert send(backend, kind, X_Request_Source=None) == 403
    assert send(backend, kind, X_Request_Source="inference-server") == 403
    assert send(backend, kind, Content_Type="text/plain") == 400
    assert send(backend, kind, suffix="/") == 404
    assert send(backend, kind, method="POST" if kind == "progress" else "PATCH") == 405
    assert send(backend, kind, {**CALLS[kind][1], "style_id": 11}) == 404
    assert not any(call.accepted for call in backend.calls)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        *((kind, "style_id", value) for kind in CALLS for value in (None, "10", 10.0, True)),
        ("progress", "progress", []),
        ("progress", "progress.current_epoch", 50.0),
        ("progress", "progress.total_epochs", "100"),
        ("progress", "progress.progress_percent", None),
        ("progress", "progress.estimated_seconds", 0.5),
        ("complete", "model_path", "/models/style_10.safetensors"),
        ("complete", "training_metric", None),
        ("complete", "training_metric.loss", "0.05"),
        ("complete", "training_metric.epochs", 99.5),
        ("failed", "error_message", None),
        ("failed", "error_message", " "),
        ("failed", "error_message", "a\0b"),
        ("failed", "error_code", 5),
    ],
)
def test_a_wrong_field_is_rejected(
    backend: BackendProcess, kind: str, path: str, value: object
) -> None:
    body = copy.deepcopy(CALLS[kind][1])
    *above, last = path.split(".")
    place: Any = body
    for part in above:
        place = place[part]
    place[last] = value
    assert send(backend, kind, body) == 400
    assert not any(call.accepted for call in backend.calls)


def test_additional_keys_are_accepted(backend: BackendProcess) -> None:
    body = {**PROGRESS, "progress": {**PROGRESS["progress"], "loss": 0.1}}  # type: ignore[dict-item] # JSON
    assert send(backend, "progress", body) == 200
    assert backend.calls[0].body == body


def test_the_record_has_everything_but_the_token(backend: BackendProcess) -> None:
    send(backend, "complete", Idempotency_Key="k")
    (call,) = backend.calls
    assert (call.kind, call.style_id, call.body) == ("complete", 10, COMPLETE)
    assert (call.idempotency_key, call.accepted, call.response) == ("k", True, 200)
    assert backend.token not in repr(call)


def test_faults_follow_their_schedule_for_the_calls_they_are_meant_for(
    backend: BackendProcess,
) -> None:
    backend.misbehave(response(500, body={"success": False}), None, kinds=["complete"])
    assert send(backend, "progress") == 200
    assert [send(backend, "complete") for _ in range(3)] == [500, 200, 200]


@pytest.mark.parametrize(("do", "accepted"), [("reset_before", False), ("reset_after", True)])
def test_a_reset_comes_before_or_after_the_call_is_accepted(
    backend: BackendProcess, do: str, accepted: bool
) -> None:
    backend.misbehave(Fault(do))
    with pytest.raises(requests.ConnectionError, match="reset"):
        send(backend, "complete")
    assert [call.accepted for call in backend.calls] == [accepted]


def test_a_slow_call_is_accepted(backend: BackendProcess) -> None:
    backend.misbehave(Fault("slow", seconds=0.05))
    assert send(backend, "failed") == 200


def test_random_faults_depend_on_the_seed() -> None:
    def drawn(seed: int) -> list[Fault | None]:
        among = [response(500), Fault("reset_after")]
        plan = FaultPlan(probability=0.5, among=among, seed=seed)
        return [plan.next("complete") for _ in range(50)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert {fault and fault.do for fault in drawn(1)} == {None, "response", "reset_after"}


def test_an_unknown_fault_is_rejected() -> None:
    with pytest.raises(ValueError, match="do='explode'"):
        Fault("explode")
