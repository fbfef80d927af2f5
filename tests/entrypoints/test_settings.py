"""Settings: everything that is wrong is named at once, with its remedy and without its secret."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from entrypoints.settings import InvalidSettings, Settings, environment_on_gpu, load_settings

TOKEN = "t" * 32


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def loaded(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return load_settings(env_file=None)


def refused(monkeypatch: pytest.MonkeyPatch, **values: str) -> list[str]:
    with pytest.raises(InvalidSettings) as caught:
        loaded(monkeypatch, **values)
    return str(caught.value).splitlines()


def test_without_any_setting_everything_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch)
    assert not settings.has_broker
    assert not settings.has_s3
    assert settings.storage_folder == Path("spool/buckets")
    assert settings.image_buckets == ("stylelicense-training-data",)


def test_every_problem_is_named_at_once_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = refused(
        monkeypatch,
        RABBITMQ_HOST="broker",
        RABBITMQ_CERT_FILE="/nowhere.pem",
        RETRY_DELAYS="0",
        AWS_ACCESS_KEY_ID="key",
        INTERNAL_API_TOKEN="short",
        LEASE_SECONDS="soon",
        LOG_LEVEL="LOUD",
    )
    assert [re.split("[=: ]", line)[0] for line in lines] == [
        "RABBITMQ_CERT_FILE",
        "RETRY_DELAYS",
        "AWS_SECRET_ACCESS_KEY",
        "BACKEND_API_URL",
        "INTERNAL_API_TOKEN",
        "LEASE_SECONDS",
        "LOG_LEVEL",
    ]
    assert "of 32 or more" in lines[4]


@pytest.mark.parametrize(
    "url",
    [
        "http://backend.example",
        "http://localhost.evil.example",
        "ftp://localhost",
        "https://user:secret@backend.example",
        "backend.example",
    ],
)
def test_the_token_travels_by_https_or_within_this_machine(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    (line,) = refused(monkeypatch, BACKEND_API_URL=url, INTERNAL_API_TOKEN=TOKEN)
    assert line.startswith("BACKEND_API_URL: ")
    assert "secret" not in line


@pytest.mark.parametrize(
    "url",
    ["https://backend.example/", "http://localhost:8000", "http://127.1.2.3", "http://[::1]:1"],
)
def test_a_good_backend_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    settings = loaded(monkeypatch, BACKEND_API_URL=url, INTERNAL_API_TOKEN=TOKEN)
    assert settings.backend_api_url == url.rstrip("/")


def test_a_backend_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = refused(monkeypatch, BACKEND_API_URL="https://backend.example")
    assert line.startswith("INTERNAL_API_TOKEN is not set")


def test_a_lease_outlasts_a_final_call(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = {"BACKEND_API_URL": "https://backend.example", "INTERNAL_API_TOKEN": TOKEN}
    (line,) = refused(monkeypatch, **backend, WEBHOOK_TIMEOUT="100")
    assert line.startswith("LEASE_SECONDS='60")
    assert "give 150 or more, for WEBHOOK_TIMEOUT=100" in line
    loaded(monkeypatch, **backend, WEBHOOK_TIMEOUT="100", LEASE_SECONDS="150")


def test_no_secret_is_in_an_error_or_a_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sesame-open"
    (line,) = refused(monkeypatch, RABBITMQ_URL=f"http://u:{secret}@broker")
    assert secret not in line
    monkeypatch.setenv("RABBITMQ_URL", f"amqp://u:{secret}@broker")
    settings = loaded(
        monkeypatch,
        BACKEND_API_URL="https://backend.example",
        INTERNAL_API_TOKEN=TOKEN,
        AWS_ACCESS_KEY_ID="id",
        AWS_SECRET_ACCESS_KEY="aws-secret",
    )
    shown = repr(settings) + str(settings)
    assert {secret, TOKEN, "aws-secret"} <= set(settings.secrets())
    assert not any(text in shown for text in settings.secrets())


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("RABBITMQ_URL", "amqp://u:sesame-open@broker?heartbeat=5"),
        ("RABBITMQ_URL", "amqp://u:sesame-open@broker:port"),
        ("S3_ENDPOINT_URL", "https://u:sesame-open@minio:9000"),
        ("S3_ENDPOINT_URL", "minio:9000"),
    ],
)
def test_an_address_that_its_adapter_would_refuse_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    (line,) = refused(
        monkeypatch,
        **{name: url},
        BACKEND_API_URL="https://backend.example",
        INTERNAL_API_TOKEN=TOKEN,
    )
    assert line.startswith(name)
    assert "sesame-open" not in line


def test_a_broker_brings_s3_with_it_unless_a_folder_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = {"BACKEND_API_URL": "https://backend.example", "INTERNAL_API_TOKEN": TOKEN}
    assert loaded(monkeypatch, RABBITMQ_HOST="broker", **backend).has_s3
    assert not loaded(monkeypatch, STORAGE_DIR="buckets").has_s3


def test_lists_are_read_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, RETRY_DELAYS="30, 1,5", ALLOWED_IMAGE_BUCKETS="a, b")
    assert settings.retry_delays == (1.0, 5.0, 30.0)
    assert settings.image_buckets == ("a", "b")


def test_an_env_file_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MOST_SETBACKS=9\nUNKNOWN_TO_US=1\n")
    assert load_settings(tmp_path / ".env").most_setbacks == 9


def test_workers_of_a_fleet_differ_in_gpu_name_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, WORKER_NAME="pod", STATUS_PORT="9200")
    second = environment_on_gpu(settings, "3", 1)
    assert second["CUDA_VISIBLE_DEVICES"] == "3"
    assert second["WORKER_NAME"] == "pod-gpu3"
    assert second["STATUS_PORT"] == "9201"
    assert second.items() >= {"PATH": os.environ["PATH"]}.items()


def test_devices_are_read_as_a_list_and_share_one_job_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert loaded(monkeypatch, DEVICE="cuda:0, cuda:1").device == "cuda:0,cuda:1"
    (line,) = refused(monkeypatch, DEVICE="gpu")
    assert line.startswith("DEVICE='gpu': give cpu, cuda")
    (line,) = refused(monkeypatch, DEVICE="cuda:0,cuda:1", JOBS_TOGETHER="auto")
    assert line.startswith("JOBS_TOGETHER='auto': give 1")
    assert loaded(monkeypatch, DEVICE="cuda:1", JOBS_TOGETHER="auto").jobs_together == "auto"
