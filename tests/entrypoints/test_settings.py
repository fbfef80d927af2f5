"""Settings: all errors are reported at once, with remedies and without secrets."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from unittest.mock import patch

import pytest

from domain.location import Bucket
from entrypoints.settings import (
    PLATFORM_NAMES,
    InvalidSettings,
    Settings,
    WorkerSettings,
    environment_on_gpu,
    load_settings,
    log_warnings,
    visible_gpus,
)
from tests.services.certificates import Authority

TOKEN = "t" * 32


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def loaded(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return load_settings(env_file=None, kind=WorkerSettings)


def rejected(monkeypatch: pytest.MonkeyPatch, **values: str) -> list[str]:
    with pytest.raises(InvalidSettings) as caught:
        loaded(monkeypatch, **values)
    return str(caught.value).splitlines()


def test_without_settings_everything_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch)
    assert not settings.has_broker
    assert not settings.has_object_store
    assert settings.storage_folder == Path("spool/buckets")
    assert settings.image_buckets == (Bucket("stylelicense-training-data"),)


def test_every_problem_is_named_at_once_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = rejected(
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
def test_the_token_is_sent_by_https_or_to_loopback_only(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    (line,) = rejected(monkeypatch, BACKEND_API_URL=url, INTERNAL_API_TOKEN=TOKEN)
    assert line.startswith("BACKEND_API_URL: ")
    assert "secret" not in line


@pytest.mark.parametrize(
    "url",
    ["https://backend.example/", "http://localhost:8000", "http://127.1.2.3", "http://[::1]:1"],
)
def test_a_valid_backend_is_accepted(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    settings = loaded(monkeypatch, BACKEND_API_URL=url, INTERNAL_API_TOKEN=TOKEN)
    assert settings.backend_api_url == url.rstrip("/")


def test_a_backend_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = rejected(monkeypatch, BACKEND_API_URL="https://backend.example")
    assert line.startswith("INTERNAL_API_TOKEN is not set")


def test_a_lease_lasts_longer_than_a_completion_call(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = {"BACKEND_API_URL": "https://backend.example", "INTERNAL_API_TOKEN": TOKEN}
    loaded(monkeypatch, WEBHOOK_TIMEOUT="100")
    (line,) = rejected(monkeypatch, **backend, WEBHOOK_TIMEOUT="100")
    assert line.startswith("LEASE_SECONDS='60")
    assert "give 150 or more, for WEBHOOK_TIMEOUT=100" in line
    loaded(monkeypatch, **backend, WEBHOOK_TIMEOUT="100", LEASE_SECONDS="150")


def test_no_secret_is_in_an_error_or_a_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sesame-open"
    (line,) = rejected(monkeypatch, RABBITMQ_URL=f"http://u:{secret}@broker")
    assert secret not in line
    monkeypatch.setenv("RABBITMQ_URL", f"amqp://u:{secret}%2Fquoted@broker")
    settings = loaded(
        monkeypatch,
        BASE_MODEL="base",
        BACKEND_API_URL="https://backend.example",
        INTERNAL_API_TOKEN=TOKEN,
        AWS_ACCESS_KEY_ID="id",
        AWS_SECRET_ACCESS_KEY="aws-secret",
    )
    shown = repr(settings) + str(settings)
    passwords = {f"{secret}%2Fquoted", f"{secret}/quoted"}
    assert {*passwords, TOKEN, "aws-secret"} <= set(settings.secrets())
    assert not any(text in shown for text in settings.secrets())


def test_a_broker_may_need_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings_with(monkeypatch, RABBITMQ_URL="amqp://h").secrets() == ("amqp://h",)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("RABBITMQ_URL", "amqp://u:sesame-open@broker?heartbeat=5"),
        ("RABBITMQ_URL", "amqp://u:sesame-open@broker:port"),
        ("S3_ENDPOINT_URL", "https://u:sesame-open@minio:9000"),
        ("S3_ENDPOINT_URL", "minio:9000"),
        ("S3_ENDPOINT_URL", "u:sesame-open@minio"),
        ("STORAGE_EMULATOR_HOST", "u:sesame-open@emulator"),
        ("RABBITMQ_HOST", "amqp://u:sesame-open@broker"),
        ("STATUS_HOST", "http://u:sesame-open@worker"),
        ("MODEL_BUCKET_NAME", "https://u:sesame-open@store/models"),
    ],
)
def test_an_invalid_url_is_rejected_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    (line,) = rejected(
        monkeypatch,
        **{name: url},
        BACKEND_API_URL="https://backend.example",
        INTERNAL_API_TOKEN=TOKEN,
    )
    assert line.startswith(name)
    assert "sesame-open" not in line


def test_a_broker_implies_s3_unless_a_folder_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = {"BACKEND_API_URL": "https://backend.example", "INTERNAL_API_TOKEN": TOKEN}
    assert loaded(monkeypatch, RABBITMQ_HOST="broker", **backend).has_object_store
    in_folder = loaded(monkeypatch, STORAGE_DIR="buckets")
    assert (in_folder.has_object_store, in_folder.storage_folder) == (False, Path("buckets"))


def test_an_s3_endpoint_alone_selects_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, S3_ENDPOINT_URL="http://minio:9000").has_object_store


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    delays = "30, 1,5,86400,30,0.001"
    settings = loaded(monkeypatch, RETRY_DELAYS=delays, ALLOWED_IMAGE_BUCKETS="a, b")
    assert settings.retry_delays == (0.001, 1.0, 5.0, 30.0, 86400.0)
    assert settings.image_buckets == (Bucket("a"), Bucket("b"))


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_an_env_file_is_read(tmp_path: Path, mark: str) -> None:
    (tmp_path / ".env").write_text(f"{mark}MAX_FAILURES=9\nUNKNOWN_TO_US=1\n", encoding="utf-8")
    assert load_settings(tmp_path / ".env").max_failures == 9


@pytest.mark.parametrize("world", ["Google Cloud Storage", "Amazon S3"])
def test_the_example_env_file_has_every_setting_a_worker_with_a_broker_needs(
    tmp_path: Path, world: str
) -> None:
    example = (Path(__file__).resolve().parents[2] / ".env.example").read_text()
    (block,) = re.findall(rf"^# The platform on {world}.*?(?:\n\n|\Z)", example, re.M | re.S)
    lines = re.findall(r"^#([A-Z].*=.*)$", block, re.MULTILINE)
    names = {line.partition("=")[0].lower() for line in lines}
    assert names <= Settings.model_fields.keys() | PLATFORM_NAMES.keys()
    filled = [f"{line}{TOKEN}" if line.endswith("=") else line for line in lines]
    (tmp_path / ".env").write_text("\n".join(filled))
    assert load_settings(tmp_path / ".env", kind=WorkerSettings).has_broker


def test_an_unreadable_env_file_is_named_in_the_error(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("MAX_FAILURES=9\n", encoding="utf-16")
    with pytest.raises(InvalidSettings) as rejected:
        load_settings(file)
    assert str(rejected.value) == f"{file}: cannot be read (it is not UTF-8; save it as UTF-8)"

    denied = PermissionError(errno.EACCES, "Permission denied")
    with (
        patch("entrypoints.settings.dotenv_values", side_effect=denied),
        pytest.raises(InvalidSettings) as rejected,
    ):
        load_settings(file)
    assert str(rejected.value) == f"{file}: cannot be read (Permission denied)"


def test_a_public_status_page_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = rejected(monkeypatch, STATUS_HOST="0.0.0.0", STATUS_PORT="9200")
    assert line.startswith("STATUS_TOKEN")
    loaded(monkeypatch, STATUS_HOST="0.0.0.0", STATUS_PORT="9200", STATUS_TOKEN=TOKEN)
    monkeypatch.delenv("STATUS_TOKEN")
    loaded(monkeypatch, STATUS_HOST="0.0.0.0", STATUS_PORT="0")


def test_a_secret_from_a_file_may_end_with_a_newline(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RABBITMQ_PASS", "AWS_SECRET_ACCESS_KEY", "INTERNAL_API_TOKEN", "STATUS_TOKEN")
    settings = loaded(
        monkeypatch,
        AWS_ACCESS_KEY_ID="key\r\n",
        STATUS_HOST="0.0.0.0\n",
        **dict.fromkeys(names, f"{TOKEN}\n"),
    )
    assert [getattr(settings, name.lower()).get_secret_value() for name in names] == [TOKEN] * 4
    assert settings.aws_access_key_id == "key"
    assert settings.status_host == "0.0.0.0"


def test_cuda_reads_its_setting_of_the_env_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("CUDA_VISIBLE_DEVICES=2,3\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    load_settings(tmp_path / ".env")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "the environment hides every GPU"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    load_settings(tmp_path / ".env")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert visible_gpus() == ("2", "3")


def test_workers_of_a_fleet_differ_in_gpu_name_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, WORKER_NAME="pod", STATUS_PORT="9200")
    second = environment_on_gpu(settings, "3", 1)
    assert second["CUDA_VISIBLE_DEVICES"] == "3"
    assert second["WORKER_NAME"] == "pod-gpu3"
    assert environment_on_gpu(settings, "MIG-4c0e/1/2", 1)["WORKER_NAME"] == "pod-gpuMIG-4c0e-1-2"
    longest = loaded(monkeypatch, WORKER_NAME="n" * 100)
    for gpu in ("3", f"MIG-GPU-{'4c0e' * 8}/1/2"):
        name = environment_on_gpu(longest, gpu, 1)["WORKER_NAME"]
        assert loaded(monkeypatch, WORKER_NAME=name).worker_name == name
    assert second["STATUS_PORT"] == "9201"
    assert second.items() >= {"PATH": os.environ["PATH"]}.items()
    silent = loaded(monkeypatch, STATUS_PORT="0")
    assert environment_on_gpu(silent, "3", 1)["STATUS_PORT"] == "0"


def test_devices_are_read_as_a_list_and_share_one_job_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert loaded(monkeypatch, DEVICE="cuda:0, cuda:1").device == "cuda:0,cuda:1"
    (line,) = rejected(monkeypatch, DEVICE="gpu")
    assert line.startswith("DEVICE='gpu': give cpu, cuda")
    (line,) = rejected(monkeypatch, DEVICE="cuda:0,cuda:1", JOBS_TOGETHER="auto")
    assert line.startswith("JOBS_TOGETHER='auto': give 1")
    for number in ("auto", "32"):
        together = loaded(monkeypatch, DEVICE="cuda:1", JOBS_TOGETHER=number)
        assert together.jobs_together == number


@pytest.mark.parametrize("broker", [{"RABBITMQ_HOST": "h"}, {"RABBITMQ_URL": "amqp://h"}])
def test_only_a_worker_with_a_broker_needs_a_backend(
    monkeypatch: pytest.MonkeyPatch, broker: dict[str, str]
) -> None:
    (backend,) = rejected(monkeypatch, **broker)
    assert backend.startswith("BACKEND_API_URL is not set")
    assert load_settings(env_file=None).has_broker, "submit and train need none"


@pytest.mark.parametrize("name", ["file", "file/spool", "dangling"])
def test_a_worker_needs_a_usable_spool_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    spool, taken = str(tmp_path / name), tmp_path / name.removesuffix("/spool")
    (line,) = rejected(monkeypatch, SPOOL_DIR=spool)
    remedy = "give a folder that this worker can write"
    assert line == f"SPOOL_DIR={spool!r}: {taken} is not a folder; {remedy}"
    assert load_settings(env_file=None).spool_dir == Path(spool), "train needs none"


def test_a_missing_spool_folder_is_checked_at_its_parent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded(monkeypatch, SPOOL_DIR=str(tmp_path / "a" / "b"))
    assert not list(tmp_path.iterdir()), "a look leaves no trace"
    denied = PermissionError(errno.EACCES, "Permission denied")
    with patch("adapters.common.files.TemporaryFile", side_effect=denied) as opened:
        (line,) = rejected(monkeypatch, SPOOL_DIR=str(tmp_path / "a" / "b"))
    assert f"{tmp_path} cannot be written (Permission denied)" in line
    opened.assert_called_once_with(dir=tmp_path)


def test_with_a_broker_the_spool_folder_is_not_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPOOL_DIR", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    lines = rejected(monkeypatch, RABBITMQ_HOST="h")
    (url,) = rejected(monkeypatch, RABBITMQ_HOST="", RABBITMQ_URL="http://h")
    assert not any("SPOOL_DIR" in line for line in [*lines, url])


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_tls_options_without_tls_are_rejected(
    monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", "amqp://u:sesame-open@broker")
    with pytest.raises(InvalidSettings, match=r"RABBITMQ_SSL='true': .*write amqps://"):
        load_settings_with(monkeypatch, RABBITMQ_SSL="true")

    pair = authority.issue("client")
    files = {
        "RABBITMQ_CA_FILE": str(authority.certificate),
        "RABBITMQ_CERT_FILE": str(pair.certificate),
        "RABBITMQ_KEY_FILE": str(pair.key),
    }
    monkeypatch.delenv("RABBITMQ_SSL")
    with pytest.raises(InvalidSettings) as caught:
        load_settings_with(monkeypatch, **files)
    lines = str(caught.value).splitlines()
    assert [line.partition("=")[0] for line in lines] == list(files)
    assert all("set RABBITMQ_SSL=true" in line for line in lines)
    load_settings_with(monkeypatch, RABBITMQ_URL="amqps://broker")
    monkeypatch.delenv("RABBITMQ_URL")
    load_settings_with(monkeypatch, RABBITMQ_HOST="broker", RABBITMQ_SSL="true")


def load_settings_with(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    """Settings of a command other than the worker."""
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return load_settings(env_file=None)


def test_an_invalid_certificate_is_reported_with_its_setting(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, tmp_path: Path
) -> None:
    other = authority.issue("other").key
    text = tmp_path / "text"
    text.write_text("no certificate")
    lines = rejected(
        monkeypatch,
        RABBITMQ_SSL="true",
        RABBITMQ_CA_FILE=str(text),
        RABBITMQ_CERT_FILE=str(authority.issue("client").certificate),
        RABBITMQ_KEY_FILE=str(other),
        BACKEND_CA_FILE=str(tmp_path),
    )
    assert [line.partition("=")[0] for line in lines] == [
        "RABBITMQ_CA_FILE",
        "RABBITMQ_KEY_FILE",
        "BACKEND_CA_FILE",
    ]
    assert all("PEM" in line for line in lines)


@pytest.mark.parametrize("given", ["RABBITMQ_CERT_FILE", "RABBITMQ_KEY_FILE"])
def test_a_certificate_and_its_key_go_together(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, given: str
) -> None:
    pair = authority.issue("client")
    files = {"RABBITMQ_CERT_FILE": pair.certificate, "RABBITMQ_KEY_FILE": pair.key}
    (line,) = rejected(monkeypatch, RABBITMQ_SSL="true", **{given: str(files[given])})
    assert line.startswith("RABBITMQ_KEY_FILE")
    assert "both, or neither" in line


def test_a_valid_file_is_not_reported_beside_an_invalid_url(
    monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    (line,) = rejected(
        monkeypatch, RABBITMQ_URL="http://h", RABBITMQ_CA_FILE=str(authority.certificate)
    )
    assert line.startswith("RABBITMQ_URL")


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("RABBITMQ_HOST", "amqp://h", "give the host's name"),
        ("RABBITMQ_QUEUE", "amq.foo", "give a name of at most 200 bytes"),
        ("RABBITMQ_URL", "amqp://u:sesame-open@h:0", "give a number from 1 to 65535"),
        ("RABBITMQ_PORT", "http", "give a whole number"),
        ("RABBITMQ_PORT", "5672.5", "give a whole number"),
        ("RABBITMQ_PORT", "99999", "give 65535 or less"),
        ("RABBITMQ_SSL", "maybe", "give true or false"),
        *(
            ("JOBS_TOGETHER", n, "`auto`, or a number from 1 to 32")
            for n in ("0", "33", "two", "²")
        ),
        *(
            ("WORKER_NAME", name, "give at most 100 of the characters")
            for name in ("pool/", "DOMAIN\\gpu1", "a gpu", "grün", "n" * 101)
        ),
        ("RETRY_DELAYS", "5,soon", "give a number"),
        ("RETRY_DELAYS", "0.0009,5", "give one or more seconds, each from 0.001"),
        ("RETRY_DELAYS", "5,86401", "to a day"),
        ("RETRY_DELAYS", ",", "give one or more seconds"),
        ("ACK_TIMEOUT", "59", "give 60 or more"),
        ("ACK_TIMEOUT", "604801", "give 604800 or less"),
        ("AWS_SESSION_TOKEN", "sesame-open", "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("AWS_STORAGE_BUCKET_NAME", "s3://images", "give the name alone"),
        ("GCS_BUCKET_NAME", "gs://images", "give the name alone"),
        ("MODEL_BUCKET_NAME", "models/styles", "give name, s3://name or gs://name"),
        ("STATE_BUCKET_NAME", "gs://state/jobs", "give name, s3://name or gs://name"),
        ("ALLOWED_IMAGE_BUCKETS", "a,https://b", "give name, s3://name or gs://name"),
        ("STORAGE_EMULATOR_HOST", "localhost:4443", "give http://host:port"),
        ("BASE_MODEL_CONFIG", "/nowhere", "no such folder"),
        ("BASE_MODEL_CONFIG", __file__, "no such folder"),
        ("RABBITMQ_CA_FILE", "/nowhere", "no such file; give a PEM file"),
        ("RABBITMQ_CERT_FILE", "/nowhere", "no such file; give a PEM file"),
        ("RABBITMQ_KEY_FILE", "/nowhere", "no such file; give a PEM file"),
        ("BACKEND_CA_FILE", "/nowhere", "no such file; give a PEM file"),
        ("BACKEND_CA_FILE", __file__, "give certificates in PEM"),
        ("AWS_SECRET_ACCESS_KEY", "sesame-open", "both, or neither"),
        ("LEASE_SECONDS", "inf", "give a finite number"),
        ("LEASE_SECONDS", "1", "give 3 or more"),
        ("LEASE_SECONDS", "3601", "give 3600 or less"),
        ("SHUTDOWN_TIMEOUT", "nan", "give a finite number"),
        ("SHUTDOWN_TIMEOUT", "1e9", "give 86400 or less"),
        ("PROGRESS_EVERY", "inf", "give a finite number"),
        ("CANCEL_POLL", "1e9", "give 86400 or less"),
        ("CANCEL_POLL", "0", "give more than 0"),
        ("LOG_LEVEL", "LOUD", "give 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
    ],
)
def test_an_invalid_setting_is_reported_with_its_name_and_valid_values(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, remedy: str
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings_with(monkeypatch, **{name: value})
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{name}=")
    assert remedy in line
    assert "sesame-open" not in line
    assert "Input should" not in line


def test_the_log_level_may_be_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, LOG_LEVEL="debug").log_level == "DEBUG"


def test_a_required_setting_with_a_misspelt_name_is_reported_with_the_right_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = rejected(
        monkeypatch, BACKEND_API_URL="https://backend.example", INTERNAL_API_TOKN="sesame-open"
    )
    assert lines[0].startswith("INTERNAL_API_TOKEN is not set")
    assert lines[1] == "INTERNAL_API_TOKN is not a setting: did you mean " + (
        "INTERNAL_API_TOKEN?"
    )
    assert len(lines) == 2


def test_a_misspelt_setting_causes_a_warning_in_every_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RABITMQ_HOST", "broker")
    (tmp_path / ".env").write_text("RABBITMQ_PASSWRD=sesame-open\nPOSTGRES_PASSWORD=x\n")
    log_warnings(load_settings(tmp_path / ".env"))
    assert [record.getMessage() for record in caplog.records] == [
        "RABBITMQ_PASSWRD is not a setting: did you mean RABBITMQ_PASS?",
        "RABITMQ_HOST is not a setting: did you mean RABBITMQ_HOST?",
    ]


def test_a_line_of_the_env_file_that_is_no_setting_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / ".env"
    file.write_text('\ufeffMIN_IMAGES=9\n# none\nRABBITMQ_PASS="open\nMAX_FAILURES=7\n', "utf-8")
    settings = load_settings(file)
    assert (settings.min_images, settings.max_failures) == (9, 7)
    log_warnings(settings)
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}, line 3 is ignored: write NAME=value, and close its quotes"
    ]
    file.write_text('MAX_FAILURES=x\nRABBITMQ_PASS="open\n')
    with pytest.raises(InvalidSettings, match="line 2 is ignored"):
        load_settings(file)


FORMER = {
    "FEWEST_PICTURES": "min_images",
    "MOST_SETBACKS": "max_failures",
    "LEAST_DISK_GB": "min_disk_gb",
    "GRACE_SECONDS": "shutdown_timeout",
}


@pytest.mark.parametrize(("old", "new"), FORMER.items())
@pytest.mark.parametrize("in_file", [True, False])
def test_a_former_name_works_with_a_warning_naming_the_new_one(
    old: str,
    new: str,
    in_file: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(f"{old}=9\n" if in_file else "")
    if not in_file:
        monkeypatch.setenv(old, "9")
    settings = load_settings(env_file)
    assert getattr(settings, new) == 9
    log_warnings(settings)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"{old} is now {new.upper()}"
    ]


def test_the_new_name_wins_over_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOST_SETBACKS", "9")
    (tmp_path / ".env").write_text("MAX_FAILURES=4\n")
    assert load_settings(tmp_path / ".env").max_failures == 4


PLATFORM = {
    "RABBITMQ_HOST": "rabbitmq",
    "RABBITMQ_PASSWORD": "sesame-open",
    "RABBITMQ_TRAINING_QUEUE": "training",
    "BACKEND_URL": "http://backend:8000",
    "INTERNAL_API_TOKEN": "dev-internal-token",
    "GCS_BUCKET_NAME": "stylelicense-media",
    "GCS_PROJECT_ID": "stylelicense",
    "CHECKPOINT_INTERVAL": "10",
}
"""A worker's environment in the platform's own names."""
DEVELOPMENT = {"BACKEND_ALLOW_HTTP": "true", "BACKEND_ALLOW_SHORT_TOKEN": "true"}


def test_the_platforms_setting_names_configure_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, **PLATFORM, **DEVELOPMENT)
    assert settings.rabbitmq_pass.get_secret_value() == "sesame-open"
    assert settings.rabbitmq_queue == "training"
    assert settings.backend_api_url == "http://backend:8000"
    assert settings.checkpoint_every == 10
    media = Bucket("stylelicense-media", "gs")
    assert (settings.models, settings.state, settings.images) == (media, media, media)
    assert settings.image_buckets == (media,)
    assert settings.schemes == ("gs",)


def test_http_and_a_short_token_must_be_allowed_explicitly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, token, _ = rejected(monkeypatch, **PLATFORM)
    assert "BACKEND_ALLOW_HTTP=true" in address
    assert "BACKEND_ALLOW_SHORT_TOKEN=true" in token


def test_our_setting_name_wins_with_a_log_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text("RABBITMQ_PASS=ours\nBACKEND_URL=https://backend.example\n")
    monkeypatch.setenv("RABBITMQ_PASSWORD", "the platform's")
    settings = load_settings(tmp_path / ".env")
    assert settings.rabbitmq_pass.get_secret_value() == "ours"
    assert settings.backend_api_url == "https://backend.example"
    with caplog.at_level("INFO"):
        log_warnings(settings)
    assert [record.getMessage() for record in caplog.records] == [
        "BACKEND_URL is read as BACKEND_API_URL",
        "RABBITMQ_PASS is used, RABBITMQ_PASSWORD is ignored",
    ]


def test_an_error_names_the_platforms_name_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rejected(monkeypatch, CHECKPOINT_INTERVAL="0") == [
        "CHECKPOINT_EVERY='0': give 1 or more",
        "CHECKPOINT_INTERVAL is read as CHECKPOINT_EVERY",
    ]


def test_settings_of_both_stores_can_be_combined(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(
        monkeypatch,
        S3_ENDPOINT_URL="http://minio:9000",
        AWS_STORAGE_BUCKET_NAME="images",
        GCS_BUCKET_NAME="media",
        MODEL_BUCKET_NAME="gs://models",
        STATE_BUCKET_NAME="s3://state",
    )
    assert settings.models == Bucket("models", "gs")
    assert settings.state == Bucket("state", "s3")
    assert settings.image_buckets == (Bucket("images"), Bucket("media", "gs"))


def test_a_bucket_without_a_store_is_allowed_in_each(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(
        monkeypatch,
        S3_ENDPOINT_URL="http://minio:9000",
        MODEL_BUCKET_NAME="gs://models",
        ALLOWED_IMAGE_BUCKETS="s3://images,media",
    )
    assert set(settings.image_buckets) == {
        Bucket("images"),
        Bucket("media", "s3"),
        Bucket("media", "gs"),
    }


def test_folders_replace_buckets_of_either_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = loaded(monkeypatch, STORAGE_DIR=str(tmp_path), MODEL_BUCKET_NAME="gs://models")
    assert settings.models == Bucket("models")
