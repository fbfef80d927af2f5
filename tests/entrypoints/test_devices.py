"""Parsing of device settings, and the errors for missing devices."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from adapters.common.devices import (
    devices_present,
    gpus_of_torch,
    max_jobs_for_memory,
    parse_devices,
)
from entrypoints.devices import choose_slots
from tests.services.settings import make_settings


def must_not_be_called() -> int:
    raise AssertionError("called")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cpu", ("cpu",)),
        ("cuda", ("cuda",)),
        ("cuda:1", ("cuda:1",)),
        ("cuda:10", ("cuda:10",)),
        ("cuda:1, cuda:0", ("cuda:1", "cuda:0")),
    ],
)
def test_devices_are_named_as_torch_names_them(text: str, found: tuple[str, ...]) -> None:
    assert parse_devices(text) == found
    assert devices_present(text, lambda: 11) == found


@pytest.mark.parametrize(
    "text",
    [
        "gpu",
        "",
        "0",
        "CUDA",
        "cuda:",
        "cuda:-1",
        "cuda,cuda:1",
        "cpu,cuda:0",
        "cuda:01",
        "cuda:1x",
    ],
)
def test_an_invalid_device_is_rejected_with_a_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="give cpu, cuda, or GPUs by their numbers"):
        parse_devices(text)
    with pytest.raises(ValueError, match="give cpu, cuda, or GPUs by their numbers"):
        devices_present(text, must_not_be_called)


def test_each_gpu_is_named_once() -> None:
    with pytest.raises(ValueError, match="give each GPU once"):
        parse_devices("cuda:1,cuda:0,cuda:1")


def test_the_default_device_is_the_gpu_where_there_is_one() -> None:
    assert devices_present(None, lambda: 2) == ("cuda",)
    assert devices_present(None, lambda: 0) == ("cpu",)
    assert devices_present("cpu", must_not_be_called) == ("cpu",)


@pytest.mark.parametrize(
    ("text", "count", "problem"),
    [
        ("cuda", 0, "torch finds no GPU here; .* or use cpu"),
        ("cuda:1", 1, "^cuda:1 does not exist; this machine has only cuda:0$"),
        ("cuda:2", 2, "^cuda:2 does not exist; this machine has cuda:0 to cuda:1$"),
        ("cuda:0,cuda:4", 3, "^cuda:4 does not exist; this machine has cuda:0 to cuda:2$"),
    ],
)
def test_a_missing_gpu_is_reported_with_the_present_ones(
    text: str, count: int, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        devices_present(text, lambda: count)


@pytest.mark.parametrize(("fits", "count"), [(True, 3), (False, 0)])
def test_gpus_whose_driver_torch_cannot_use_do_not_count(
    monkeypatch: pytest.MonkeyPatch, fits: bool, count: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: fits)
    assert gpus_of_torch() == count


def no_devices_needed() -> Sequence[str]:
    raise AssertionError("called")


def test_concurrent_jobs_are_as_configured_or_as_many_as_fit_the_first_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queried: list[torch.device] = []
    memory = 80 * 1024**3

    def properties(device: torch.device) -> SimpleNamespace:
        queried.append(device)
        return SimpleNamespace(total_memory=memory)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert choose_slots(make_settings(jobs_together="3"), no_devices_needed) == 3
    auto = make_settings(jobs_together="auto")
    assert choose_slots(auto, lambda: ("cpu",)) == 1
    assert choose_slots(auto, lambda: ("cuda:1", "cuda:0")) == max_jobs_for_memory(memory) > 1
    assert queried == [torch.device("cuda:1")]
