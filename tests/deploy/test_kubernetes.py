"""deploy/kubernetes against Kubernetes' schemas, KEDA's fields and the code's own figures."""

from __future__ import annotations

import tomllib
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest

from tests.deploy.files import (
    DEPLOY,
    ROOT,
    SECRETS,
    SETTINGS,
    STATUS_PORT,
    accepted,
    read_all,
    read_yaml,
)

FOLDER = DEPLOY / "kubernetes"
VERSION = "1.34"
OBJECTS: dict[str, Any] = {
    document["kind"]: document
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in read_all(f"kubernetes/{path.name}")
}
SETTINGS_MAP: dict[str, str] = OBJECTS["ConfigMap"]["data"]
SECRET: dict[str, str] = OBJECTS["Secret"]["stringData"]
SCALED: dict[str, Any] = OBJECTS["ScaledJob"]["spec"]
TEMPLATE: dict[str, Any] = SCALED["jobTargetRef"]["template"]
POD: dict[str, Any] = TEMPLATE["spec"]
(WORKER,) = POD["containers"]
JOB: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "as-keda-makes-it"},
    "spec": SCALED["jobTargetRef"],
}

# What KEDA's custom resources know, as far as it is used here.
SCALED_JOB = {
    *("jobTargetRef", "maxReplicaCount", "pollingInterval", "triggers", "rollout"),
    *("scalingStrategy", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"),
}
RABBITMQ_TRIGGER = {"protocol", "queueName", "mode", "value", "vhostName", "activationValue"}


@pytest.mark.parametrize(
    "document", [OBJECTS["Namespace"], OBJECTS["ConfigMap"], OBJECTS["Secret"], JOB]
)
def test_every_manifest_is_valid_against_its_schema(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_schema_rejects_invalid_manifests() -> None:
    broken = {**JOB, "spec": {**JOB["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)


def test_kustomize_includes_every_manifest_except_the_example_secret() -> None:
    kustomization = read_yaml("kubernetes/kustomization.yaml")
    others = {path.name for path in FOLDER.glob("*.yaml")} - set(kustomization["resources"])
    assert others == {"kustomization.yaml", "secret.example.yaml"}
    assert kustomization["namespace"] == OBJECTS["Namespace"]["metadata"]["name"]
    (image,) = kustomization["images"]
    assert image["name"] == WORKER["image"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert image["newTag"] == f"{project['version']}-cuda"


def _environment() -> dict[str, str]:
    (source,) = WORKER["envFrom"]
    assert source["configMapRef"]["name"] == OBJECTS["ConfigMap"]["metadata"]["name"]
    named = {}
    for variable in WORKER["env"]:
        reference = variable["valueFrom"]["secretKeyRef"]
        assert reference["name"] == OBJECTS["Secret"]["metadata"]["name"]
        named[variable["name"]] = SECRET[reference["key"]]
    return {**SETTINGS_MAP, **named}


def test_service_environment_variables_are_not_settings() -> None:
    assert POD["enableServiceLinks"] is False


def test_the_worker_starts_with_these_settings() -> None:
    environment = _environment()
    assert environment.keys() <= SETTINGS.keys()
    long = dict.fromkeys(("INTERNAL_API_TOKEN", "STATUS_TOKEN"), "t" * 32)
    settings = accepted(environment | long)
    assert settings.has_broker
    assert settings.has_object_store
    assert settings.rabbitmq_ssl


def test_secrets_are_only_in_the_secret() -> None:
    assert not SECRETS & SETTINGS_MAP.keys()
    assert all("replace-me" in value for name, value in SECRET.items() if name in SECRETS)


def test_the_termination_grace_period_exceeds_the_shutdown_timeout() -> None:
    assert POD["terminationGracePeriodSeconds"] > float(SETTINGS_MAP["SHUTDOWN_TIMEOUT"])


def test_prometheus_can_read_a_jobs_outcome_before_the_worker_exits() -> None:
    scrape_interval = 30  # usual in a cluster
    assert "--once" in WORKER["args"]
    assert float(SETTINGS_MAP["IDLE_SECONDS"]) >= 2 * scrape_interval


def test_the_probes_use_the_status_pages_port() -> None:
    (port,) = WORKER["ports"]
    assert port["containerPort"] == STATUS_PORT == int(SETTINGS_MAP["STATUS_PORT"])
    assert SETTINGS_MAP["STATUS_HOST"] == "0.0.0.0"
    paths = {probe: WORKER[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe")}
    assert all(probe["port"] == port["name"] for probe in paths.values())
    assert paths["livenessProbe"]["path"] == "/health/live"
    annotations = TEMPLATE["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(STATUS_PORT)


def test_the_pod_is_restricted() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    user = POD["securityContext"]["runAsUser"]
    assert f"USER {user}:{POD['securityContext']['runAsGroup']}" in dockerfile
    own = WORKER["securityContext"]
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    mounts = {mount["mountPath"] for mount in WORKER["volumeMounts"]}
    for path in ("/tmp/huggingface", "/tmp/matplotlib", "/tmp/cache"):
        assert path in dockerfile
    assert mounts == {"/tmp"}


def test_a_gpu_is_requested_and_spot_nodes_are_tolerated() -> None:
    assert WORKER["resources"]["limits"]["nvidia.com/gpu"] == "1"
    keys = {toleration["key"] for toleration in POD["tolerations"]}
    assert any("spot" in key or "capacity-type" in key for key in keys)


def test_keda_starts_a_job_for_each_message_and_stops_none() -> None:
    assert SCALED.keys() <= SCALED_JOB
    (trigger,) = SCALED["triggers"]
    assert trigger["type"] == "rabbitmq"
    assert trigger["metadata"].keys() <= RABBITMQ_TRIGGER
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert trigger["metadata"]["queueName"] == SETTINGS["RABBITMQ_QUEUE"].default
    assert trigger["metadata"]["mode"] == "QueueLength"
    assert WORKER["args"] == ["--once"], "a worker ends when the queue is empty"
    # Another strategy deletes running jobs when the template changes.
    assert SCALED["rollout"] == {"strategy": "gradual"}
    assert POD["restartPolicy"] == "Never"
    assert SCALED["jobTargetRef"]["backoffLimit"] == 0


def test_keda_authenticates_at_the_management_api_with_the_secret() -> None:
    authentication = OBJECTS["TriggerAuthentication"]
    (trigger,) = SCALED["triggers"]
    assert trigger["authenticationRef"] == {"name": authentication["metadata"]["name"]}
    (target,) = authentication["spec"]["secretTargetRef"]
    assert target["parameter"] == "host"
    assert target["name"] == OBJECTS["Secret"]["metadata"]["name"]
    assert trigger["metadata"]["protocol"] == "http"
    assert urlsplit(SECRET[target["key"]]).scheme == "https"
