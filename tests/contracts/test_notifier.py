"""The contract of every notifier. For a new adapter add a parameter to ``harness``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import StringIO

import pytest
from rich.console import Console

from adapters.clock import SystemClock
from adapters.console.notifier import ConsoleNotifier
from adapters.memory import MemoryNotifier
from adapters.schemas.bodies import complete_body, failed_body, progress_body
from adapters.webhook.notifier import Bodies, WebhookNotifier
from adapters.webhook.options import WebhookOptions
from application.ports import Notifier
from domain.failure import Failure, FailureCode
from domain.location import Location
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric
from tests.services.backend_process import BackendProcess

ARTIFACT = Artifact(Location("models", "models/style_7.safetensors"), "ab" * 32, 3_000_000)
METRIC = TrainingMetric(loss=0.05, epochs=100, steps=1000)
PROGRESS = Progress(50, 100, 500, 1000, loss=0.07, steps_per_second=2.0)


@dataclass(frozen=True)
class Harness:
    """A notifier, and the calls that the backend received from it."""

    notifier: Notifier
    final_calls: Callable[[], int]


@pytest.fixture(scope="module")
def backend() -> Iterator[BackendProcess]:
    with BackendProcess() as process:
        yield process


@pytest.fixture(
    params=["memory", "console", pytest.param("webhook", marks=pytest.mark.integration)]
)
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    match request.param:
        case "memory":
            memory = MemoryNotifier()
            yield Harness(memory, lambda: len(memory.final))
        case "console":
            printed = StringIO()
            console = Console(file=printed, width=1000)
            yield Harness(ConsoleNotifier(console), lambda: printed.getvalue().count("style "))
        case "webhook":
            backend: BackendProcess = request.getfixturevalue("backend")
            backend.forget()
            options = WebhookOptions(
                base_url=backend.url, token=backend.token, user_agent="style-trainer/test"
            )
            bodies = Bodies(progress_body, complete_body, failed_body)
            notifier = WebhookNotifier(options, bodies, SystemClock())
            yield Harness(notifier, lambda: len(backend.final))
            notifier.close()


def test_progress_is_not_final(harness: Harness) -> None:
    harness.notifier.progress(7, PROGRESS)
    harness.notifier.progress(7, Progress(0, 100, 1, 1000, steps_per_second=0.001))
    assert harness.final_calls() == 0


def test_each_outcome_arrives_once(harness: Harness) -> None:
    harness.notifier.completed("task", 7, ARTIFACT, METRIC)
    assert harness.final_calls() == 1
    harness.notifier.failed("task", 8, Failure(FailureCode.GPU_OOM, "The GPU is small."))
    assert harness.final_calls() == 2


@pytest.mark.parametrize("message", ["", "two\nlines", "[bold]Grüße[/nope] 画 {}%s", "x" * 20_000])
def test_every_failure_can_be_sent(harness: Harness, message: str) -> None:
    for code in FailureCode:
        harness.notifier.failed(f"task of {code}", 7, Failure(code, message))
    assert harness.final_calls() == len(FailureCode)


def test_calls_may_come_from_several_threads(harness: Harness) -> None:
    def call(number: int) -> None:
        harness.notifier.progress(number, PROGRESS)
        harness.notifier.completed(f"task-{number}", number, ARTIFACT, METRIC)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(1, 41)))
    assert harness.final_calls() == 40


def test_has_arrived_is_never_true_for_another_call(harness: Harness) -> None:
    other = replace(ARTIFACT, sha256="cd" * 32)
    failure = Failure(FailureCode.GPU_OOM, "The GPU is small.")
    has_arrived = harness.notifier.has_arrived
    assert not has_arrived("task", 7, ARTIFACT)
    harness.notifier.completed("task", 7, ARTIFACT, METRIC)
    assert not has_arrived("earlier task", 7, ARTIFACT)
    assert not has_arrived("task", 7, other)
    assert not has_arrived("task", 8, ARTIFACT)
    assert has_arrived("task", 7, failure) is None
    if not isinstance(harness.notifier, ConsoleNotifier):
        assert has_arrived("task", 7, ARTIFACT) is True
