"""The check command with all dependencies in memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapters.memory import MemoryBlobStore
from domain.errors import UserError
from domain.location import Bucket, Location
from entrypoints.bootstrap import open_container
from entrypoints.check import check, require_fit_store, trials
from entrypoints.settings import load_settings
from tests.application.world import World
from tests.services.settings import make_settings


class Noting(MemoryBlobStore):
    """Records which buckets are read and written."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[str] = set()
        self.written: set[str] = set()

    def get(self, at: Location, **options: Any) -> Any:
        self.read.add(at.bucket)
        return super().get(at, **options)

    def put(self, at: Location, data: bytes, **options: Any) -> str:
        self.written.add(at.bucket)
        return super().put(at, data, **options)


def fail(text: str) -> Any:
    raise RuntimeError(text)


def container(**parts: Any) -> Any:
    settings = SimpleNamespace(
        image_buckets=(Bucket("a"), Bucket("b")),
        models=Bucket("models"),
        state=Bucket("state", "gs"),
        gcs_bucket_name=None,
        weights_in_folder=True,
        work_folder=Path(),
        min_disk_gb=0.0,
        storage_dir=None,
        has_object_store=True,
        model_fields_set=set(),
    )
    usual = {
        "settings": lambda: settings,
        "blobs": Noting,
        "store": World().store,
        "queue_depths": lambda: fail("no\n  broker"),
        "plain_notifier": lambda: fail(""),
        "devices": lambda: ("cpu",),
        "base_model": lambda: SimpleNamespace(
            name="base", native_resolution=64, prediction_type="epsilon"
        ),
    }
    return SimpleNamespace(**usual | parts)


def test_every_bucket_is_checked_and_only_the_model_bucket_written_to() -> None:
    blobs = Noting()
    for part, trial in trials(container(blobs=lambda: blobs)):
        if part in {"images", "models", "state"}:
            trial()
    assert blobs.written == {"models", "state"}
    assert blobs.read >= {"a", "b", "models", "state"}
    assert not blobs.blobs, "nothing is left of the trial"


def test_failures_and_successes_have_a_line_each(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check(container()) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAILED  queue       no broker" in lines
    assert "FAILED  backend     RuntimeError" in lines
    assert "ok      base model  base, 64 px, predicts epsilon" in lines
    assert check(container(), as_json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert {"part": "queue", "works": False, "detail": "no broker"} in found
    assert [row["works"] for row in found] == [line.startswith("ok") for line in lines]


def test_a_gpu_is_printed_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="NVIDIA H200", total_memory=140 * 1024**3, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    line = dict(trials(container(devices=lambda: ("cuda:0", "cuda:1"))))["device"]()
    assert line.split("; ")[1].startswith("NVIDIA H200, 140 GiB, ")


def named(container: Any, part: str) -> Any:
    return dict(trials(container))[part]


def test_too_little_disk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    short = SimpleNamespace(
        work_folder=Path(),
        min_disk_gb=1e9,
        image_buckets=(),
        models=Bucket("m"),
        state=Bucket("m"),
    )
    with pytest.raises(UserError, match=r"GB are needed: free disk space, or lower MIN_DISK_GB"):
        named(container(settings=lambda: short), "disk")()


def test_settings_without_effect_and_a_missing_folder_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = make_settings(storage_dir=tmp_path / "bukkets")
    with pytest.raises(UserError, match=r"STORAGE_DIR=.*bukkets: no such folder"):
        named(container(settings=lambda: settings), "settings")()
    with pytest.raises(UserError, match=r"STORAGE_DIR=.*bukkets: no such folder"):
        named(container(settings=lambda: settings), "models")()
    (tmp_path / "bukkets").mkdir()
    named(container(settings=lambda: settings), "settings")()
    monkeypatch.setenv("RABBITMQ_HOSTNAME", "broker.example")
    (tmp_path / ".env").write_text('RABBITMQ_HOST="broker\n')
    settings = load_settings()
    with pytest.raises(UserError, match=r"\.env, line 1 is ignored.*did you mean RABBITMQ_HOST\?"):
        named(container(settings=lambda: settings), "settings")()


@pytest.mark.parametrize("state", ["gs://state", "s3://state"])
def test_a_worker_does_not_start_without_the_library_of_a_configured_store(
    monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    for module in ("adapters.gcs.store", "adapters.gcs.client"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    settings = make_settings(gcs_bucket_name="media", state_bucket_name=state)
    with (
        open_container(settings) as worker,
        pytest.raises(UserError, match=r"pip install 'style-trainer\[gcs\]'"),
    ):
        require_fit_store(worker)
