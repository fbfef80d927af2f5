"""deploy/runpod/template.json: RunPod's fields, our settings, and no secret."""

from __future__ import annotations

import re
import tomllib

from entrypoints.bootstrap import open_container
from entrypoints.check import trials
from tests.deploy.files import DEPLOY, ROOT, SECRETS, SETTINGS, STATUS_PORT, accepted, read_json

TEMPLATE = read_json("runpod/template.json")
ENVIRONMENT: dict[str, str] = TEMPLATE["env"]
PAGE = (ROOT / "docs" / "runpod.md").read_text(encoding="utf-8")
SECRET = re.compile(r"\{\{ RUNPOD_SECRET_(\w+) \}\}")

# https://docs.runpod.io/api-reference/templates/POST/templates
FIELDS = {
    "name": str,
    "imageName": str,
    "category": str,
    "containerDiskInGb": int,
    "containerRegistryAuthId": str,
    "dockerEntrypoint": list,
    "dockerStartCmd": list,
    "env": dict,
    "isPublic": bool,
    "isServerless": bool,
    "ports": list,
    "readme": str,
    "volumeInGb": int,
    "volumeMountPath": str,
}
SPOT_SECONDS = 5
"""Seconds between SIGTERM and SIGKILL on a spot pod."""


def test_fields_are_those_of_the_runpod_api() -> None:
    assert TEMPLATE.keys() <= FIELDS.keys()
    for name, value in TEMPLATE.items():
        assert type(value) is FIELDS[name], name
    assert {"name", "imageName"} <= TEMPLATE.keys()
    assert not TEMPLATE["isPublic"]


def test_the_worker_starts_with_these_settings() -> None:
    assert ENVIRONMENT.keys() <= SETTINGS.keys()
    filled = {name: SECRET.sub("s" * 32, value) for name, value in ENVIRONMENT.items()}
    settings = accepted(filled)
    assert settings.has_broker
    assert settings.has_object_store
    assert settings.rabbitmq_ssl
    assert settings.shutdown_timeout < SPOT_SECONDS


def test_every_secret_is_a_reference_that_the_page_explains() -> None:
    for name in SECRETS & ENVIRONMENT.keys():
        reference = SECRET.fullmatch(ENVIRONMENT[name])
        assert reference, name
        assert re.search(rf"^\| `{reference[1]}` \| `{name}`", PAGE, re.MULTILINE), name
    assert SECRETS & ENVIRONMENT.keys() >= {"RABBITMQ_PASS", "INTERNAL_API_TOKEN"}


def test_the_status_page_is_published_where_it_listens() -> None:
    assert TEMPLATE["ports"] == [f"{STATUS_PORT}/http"]
    assert int(ENVIRONMENT["STATUS_PORT"]) == STATUS_PORT
    assert f"PODID-{STATUS_PORT}.proxy.runpod.net" in PAGE


def test_the_image_is_of_this_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert TEMPLATE["imageName"].endswith(f":{project['version']}-cuda")
    assert TEMPLATE["imageName"] in PAGE


def test_the_page_names_the_files_that_it_uses() -> None:
    for name in ("runpod/template.json", "iam-policy.json", "s3-lifecycle.json"):
        assert f"deploy/{name}" in PAGE
        assert (DEPLOY / name).is_file()


def test_the_page_shows_every_line_of_the_check() -> None:
    with open_container(accepted({})) as container:
        parts = [part for part, _ in trials(container)]
    shown = re.findall(r"^    ok {6}(\w+(?: \w+)?) {2,}\S", PAGE, re.MULTILINE)
    assert shown == parts
