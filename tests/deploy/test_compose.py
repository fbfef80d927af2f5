"""deploy/compose.yaml and the configuration of Prometheus and Grafana."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from compose_spec import PyCompose

from tests.brokers.__main__ import VERSIONS
from tests.deploy.files import DEPLOY, ROOT, SETTINGS, STATUS_PORT, accepted, read_yaml

COMPOSE: dict[str, Any] = read_yaml("compose.yaml")
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = ("worker", "submit")


def test_compose_file_passes_an_independent_validator() -> None:
    # The reader knows no merge keys, which YAML 1.2 has dropped; the engine does.
    read = PyCompose.from_yaml(yaml.safe_dump(COMPOSE))
    assert set(read.service_names()) == set(SERVICES)


def test_the_independent_validator_rejects_invalid_compose_files() -> None:
    broken = {**COMPOSE, "services": {"worker": {"imagee": "style-trainer:cpu"}}}
    with pytest.raises(ValueError, match="imagee"):
        PyCompose.from_yaml(yaml.safe_dump(broken))


def test_every_service_a_worker_needs_is_there() -> None:
    parts = {"rabbitmq", "minio", "buckets", "backend", "prometheus", "grafana", "worker"}
    assert parts <= set(SERVICES)
    assert "management" in SERVICES["rabbitmq"]["image"]


@pytest.mark.parametrize("name", [name for name in SERVICES if "image" in SERVICES[name]])
def test_an_image_is_named_with_a_version(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].rpartition(":")
    assert image
    assert tag
    assert tag != "latest"


def test_no_image_is_pulled_from_a_withdrawn_place_and_ours_from_no_registry() -> None:
    for name, service in SERVICES.items():
        image = service["image"]
        assert not image.startswith("minio/"), name
        if image.startswith("style-trainer:"):
            assert service["pull_policy"] in {"build", "never"}, name


def test_rabbitmq_is_of_a_version_that_the_broker_tests_run_on() -> None:
    tag = SERVICES["rabbitmq"]["image"].rpartition(":")[2]
    assert any(tag.startswith(f"{version.name}.") for version in VERSIONS)


@pytest.mark.parametrize("name", OURS)
def test_the_worker_starts_with_these_settings(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert set(environment) <= set(SETTINGS)
    settings = accepted(environment)
    assert settings.has_broker
    assert settings.has_object_store


def test_hosts_and_ports_are_those_of_the_services() -> None:
    environment = SERVICES["worker"]["environment"]
    assert environment["RABBITMQ_HOST"] in SERVICES
    store = urlsplit(environment["S3_ENDPOINT_URL"])
    assert store.hostname in SERVICES
    assert f"127.0.0.1:{store.port}:{store.port}" in SERVICES["minio"]["ports"]
    assert f"127.0.0.1:{STATUS_PORT}:{STATUS_PORT}" in SERVICES["worker"]["ports"]
    assert int(environment["STATUS_PORT"]) == STATUS_PORT


def test_the_backend_has_a_network_name_and_knows_the_workers_token() -> None:
    backend, environment = SERVICES["backend"], SERVICES["worker"]["environment"]
    address = urlsplit(environment["BACKEND_API_URL"])
    assert SERVICES[address.hostname or ""] is backend
    assert "network_mode" not in backend, "a network of the worker's ends with the worker"
    command = backend["command"]
    assert command[command.index("--host") + 1] == "0.0.0.0"
    assert f"127.0.0.1:{address.port}:{address.port}" in backend["ports"]
    assert command[command.index("--port") + 1] == str(address.port)
    assert command[command.index("--token") + 1] == environment["INTERNAL_API_TOKEN"]
    module = backend["entrypoint"][-1]
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    for option in (word for word in command if word.startswith("--")):
        assert f'"{option}"' in source


def test_the_buckets_of_the_worker_are_created() -> None:
    script = SERVICES["buckets"]["entrypoint"][-1]
    environment = SERVICES["worker"]["environment"]
    for name in ("AWS_STORAGE_BUCKET_NAME", "MODEL_BUCKET_NAME"):
        assert f"/{environment[name]}" in script
    waits = SERVICES["worker"]["depends_on"]["buckets"]["condition"]
    assert waits == "service_completed_successfully"


@pytest.mark.parametrize("name", list(SERVICES))
def test_ports_are_published_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@pytest.mark.parametrize("name", list(SERVICES))
def test_every_mounted_file_exists(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
        else:
            assert source in COMPOSE["volumes"], source


def test_the_stop_grace_period_exceeds_the_shutdown_timeout() -> None:
    shutdown_timeout = accepted(SERVICES["worker"]["environment"]).shutdown_timeout
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > shutdown_timeout


def test_prometheus_finds_the_worker_with_its_token() -> None:
    configuration = read_yaml("prometheus/prometheus.yml")
    job, broker = configuration["scrape_configs"]
    assert urlsplit(f"//{broker['static_configs'][0]['targets'][0]}").hostname in SERVICES
    assert job["static_configs"] == [{"targets": [f"worker:{STATUS_PORT}"]}]
    (mounted,) = SERVICES["prometheus"]["configs"]
    assert job["authorization"]["credentials_file"] == mounted["target"]
    token = COMPOSE["configs"][mounted["source"]]["content"]
    assert token == SERVICES["worker"]["environment"]["STATUS_TOKEN"]
    for name in configuration["rule_files"]:
        assert (DEPLOY / "prometheus" / name).is_file()


def test_grafana_has_the_data_source_of_the_dashboard() -> None:
    (source,) = read_yaml("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert urlsplit(source["url"]).hostname in SERVICES
    (provider,) = read_yaml("grafana/provisioning/dashboards/dashboards.yml")["providers"]
    mounts = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert any(mount.startswith(provider["options"]["path"] + "/") for mount in mounts)
