"""The data sources of the status page."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr

from adapters.common.files import free_space, lack_of_space
from adapters.memory import ManualClock, MemoryQueue
from adapters.metrics.instruments import Metrics
from adapters.metrics.queue import DepthGauges
from adapters.status_page.configuration import visible_settings, without_password
from adapters.status_page.state import WorkerState
from application.circuit_breaker import CircuitBreaker
from application.ports import QueueUnavailable
from application.stop_signal import StopReason, StopSignal
from entrypoints.bootstrap import open_container
from entrypoints.status import (
    OLD_SECONDS,
    broker_check,
    model_check,
    serving,
    work_check,
)
from tests.adapters.test_nvml import Nvml
from tests.services.settings import make_settings


class SomeSettings(BaseModel):
    broker_url: SecretStr | None = Field(None, description="Where the `broker` is")
    token: SecretStr | None = Field(None, description="What the backend was notified")
    endpoint: str = "https://user:pass@minio:9000/x"
    folder: Path = Path("spool")
    delays: tuple[float, ...] = (5.0, 30.0)
    device: str | None = None


def test_settings_are_shown_without_secrets() -> None:
    secret = SecretStr("amqp://user:hunter2@broker/")
    rows = {
        row["name"]: row for row in visible_settings(SomeSettings(broker_url=secret, token=None))
    }
    assert rows["BROKER_URL"]["value"] == "set"
    assert rows["TOKEN"]["value"] == "not set"
    assert rows["ENDPOINT"]["value"] == "https://minio:9000/x"
    assert rows["DELAYS"]["value"] == "5.0, 30.0"
    assert rows["DEVICE"]["value"] == "not set"
    assert rows["BROKER_URL"]["meaning"] == "Where the broker is"
    assert "hunter2" not in str(rows)


def test_every_setting_of_a_worker_can_be_shown_and_none_shows_a_secret() -> None:
    from entrypoints.settings import Settings

    names = {
        name: "S3CR3T-" + "x" * 32
        for name, field in Settings.model_fields.items()
        if "SecretStr" in str(field.annotation) and "url" not in name and "dsn" not in name
    }
    assert names, "there are secrets"
    settings = make_settings(aws_access_key_id="AKIA", backend_api_url="https://backend", **names)
    rows = visible_settings(settings)
    assert len(rows) == len(Settings.model_fields)
    assert "S3CR3T" not in str(rows)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:p@host:1/x?y", "https://host:1/x?y"),
        ("plain text", "plain text"),
        ("s3://bucket/key", "s3://bucket/key"),
    ],
)
def test_an_address_is_shown_without_password(text: str, shown: str) -> None:
    assert without_password(text) == shown


def test_the_base_model_is_ready_once_it_is_loaded() -> None:
    worker_state = WorkerState("w", "1", ManualClock())
    assert not model_check(worker_state)[0]
    worker_state.model = "sd15"
    assert model_check(worker_state) == (True, "sd15")


def test_a_worker_that_stops_is_not_ready() -> None:
    stop = StopSignal()
    worker_state = WorkerState("w", "1", ManualClock(), lambda: stop.reason is not None)
    breaker = CircuitBreaker(ManualClock())
    assert work_check(worker_state, breaker)[0]
    stop.request(StopReason.SHUTDOWN)
    assert not work_check(worker_state, breaker)[0]


def test_the_broker_is_ready_while_it_responds() -> None:
    clock = ManualClock()
    gauges = DepthGauges(MemoryQueue(clock), Metrics("w", "1"), clock.monotonic)
    assert not broker_check(gauges, "rabbitmq:5672")[0]
    gauges.poll()
    assert broker_check(gauges, "rabbitmq:5672") == (True, "rabbitmq:5672 responds")
    clock.advance(OLD_SECONDS + 1)
    assert broker_check(gauges, "rabbitmq:5672")[0] is False


def test_free_space_is_checked_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage: dict[Path, Any] = {}

    def disk_usage(path: Path) -> Any:
        usage[path] = SimpleNamespace(free=3.2e9)
        return usage[path]

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    folder = tmp_path / "not" / "there" / "yet"
    assert free_space(folder, 2.0)[0]
    assert free_space(folder, 10.0) == (False, f"3.2 GB free in {folder}; 10 GB are needed")
    assert set(usage) == {tmp_path}


def test_a_link_to_an_unmounted_disk_has_no_free_space(tmp_path: Path) -> None:
    folder = tmp_path / "link"
    folder.symlink_to(tmp_path / "unmounted")
    expected = f"{folder} cannot be read (No such file or directory)"
    assert free_space(folder, 0.0) == (False, expected)
    assert lack_of_space(folder, 0.0) == expected


def test_polling_starts_at_once_and_never_delays_shutdown() -> None:
    clock = ManualClock()
    reached, never = threading.Event(), threading.Event()

    class Hanging(MemoryQueue):
        def depths(self) -> dict[str, int]:
            reached.set()
            never.wait(30)
            raise QueueUnavailable("no connection")

    gauges = DepthGauges(Hanging(clock), Metrics("w", "1"), clock.monotonic)
    with gauges.polling(seconds=0.01):
        assert reached.wait(5)
    assert gauges.age is None
    never.set()


@pytest.mark.parametrize(("visible", "known"), [("0", 80 * 2**30), ("1", None)])
def test_a_worker_shows_the_gpus_of_cuda_visible_devices_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, known: int | None
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with (
        open_container(make_settings(spool_dir=tmp_path, status_port=0)) as container,
        serving(container),
    ):
        labels = {"gpu": "0", "model": "NVIDIA H100"}
        shown = container.metrics().registry.get_sample_value(
            "style_trainer_gpu_memory_total_bytes", labels
        )
        assert shown == known
