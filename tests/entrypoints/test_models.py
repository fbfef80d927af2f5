"""Which base model is used by default, and how it is loaded; no hub is contacted."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

from adapters.captioner import CaptionModelInvalid
from adapters.diffusion.base import model
from entrypoints.models import (
    SMALL_BASE,
    STABLE_DIFFUSION,
    default_base,
    load_base_model,
    load_captioner,
)
from entrypoints.settings import WorkerSettings
from tests.services.settings import make_settings

TOKEN = "t" * 32


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A fake hub: its cache, and its error."""
    fake = SimpleNamespace(cached=None, fault=None, timeout_seconds=None)

    def model_info(_name: str, *, timeout: float) -> None:
        fake.timeout_seconds = timeout
        if fake.fault is not None:
            raise fake.fault

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: fake.cached)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=model_info))
    return fake


def test_without_a_gpu_the_small_base_is_used_without_a_download(hub: SimpleNamespace) -> None:
    assert default_base("cpu") == (str(SMALL_BASE), "the training runs on the CPU")
    assert hub.timeout_seconds is None


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_on_a_gpu_stable_diffusion_is_used_where_available(
    hub: SimpleNamespace, device: str
) -> None:
    assert default_base(device)[0] == STABLE_DIFFUSION
    assert 0 < hub.timeout_seconds <= 2, "an unreachable hub delays the start only briefly"
    hub.fault = OSError("unreachable")
    assert default_base(device) == (str(SMALL_BASE), "the Hugging Face hub cannot be reached")
    hub.cached = "/cache/model_index.json"
    assert default_base(device)[0] == STABLE_DIFFUSION


@pytest.mark.parametrize("name", ["someone/captioner", "/no/such/folder"])
def test_a_caption_model_that_does_not_exist_is_found_without_retries(
    hub: SimpleNamespace, name: str
) -> None:
    hub.fault = OSError("unreachable")
    with pytest.raises(CaptionModelInvalid, match=rf"{name}: is not a folder, and the hub"):
        load_captioner(make_settings(caption_model=name), "cpu")
    assert hub.timeout_seconds > 2, "a slow hub is waited for if it is needed"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How the base model was loaded, and the threads that torch was given."""
    calls: list[Any] = []

    def load(name: str, config_folder: Path | None) -> Any:
        calls.append((name, config_folder))
        return SimpleNamespace(native_resolution=512 if name == "large" else 64)

    monkeypatch.setattr(model, "load_base", load)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    return calls


def test_a_given_base_is_loaded_with_its_options(
    loaded: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings(base_model="large", base_model_config=tmp_path)
    load_base_model(settings, "cpu")
    assert loaded == [("large", tmp_path)]
    assert caplog.text == ""


def test_a_broker_selects_the_base_of_workers_only(loaded: list[Any]) -> None:
    broker = {
        "rabbitmq_host": "broker",
        "backend_api_url": "https://b",
        "internal_api_token": TOKEN,
    }
    load_base_model(WorkerSettings.model_validate(broker), "cpu")
    load_base_model(make_settings(**broker), "cpu")
    assert [call[0] for call in loaded if call != 1] == [STABLE_DIFFUSION, str(SMALL_BASE)]


def test_a_default_base_is_logged_and_a_small_one_uses_one_thread(
    loaded: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_base_model(make_settings(base_model=None), "cpu")
    assert loaded == [(str(SMALL_BASE), None), 1]
    assert "BASE_MODEL is not set: using" in caplog.text
