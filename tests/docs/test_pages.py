"""Pages, headings, files, commands and settings that the guides refer to exist."""

from __future__ import annotations

import math
import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from domain.failure import FailureCode
from entrypoints.settings import PLATFORM_NAMES, Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])
GUIDES = sorted((ROOT / "docs").glob("*.md"))
COMMANDS_IN = [*GUIDES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

NOT_OURS = {
    # Of tools that the guides use.
    *("CI", "IMAGE", "FOLDER", "PWD", "RUNPOD_API_KEY", "PODID", "COMMIT", "PASSWORD", "TASK_ID"),
    "CUDA_VISIBLE_DEVICES",
    # Of the image's build.
    *("VARIANT", "MODEL", "BASE_MODEL_HUB", "BASE_MODEL_REVISION", "TORCH_CUDA_INDEX"),
    *("HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE"),
    # Words of the broker and of logs.
    *("ACCESS_REFUSED", "PRECONDITION_FAILED", "FAILED", "WARNING", "ERROR", "DEBUG", "INFO"),
    *("SIGTERM", "SIGKILL", "JSON", "TLS", "AMQP"),
}


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _anchors(page: Path) -> set[str]:
    """The headings' anchors, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _links(page: Path) -> list[str]:
    prose = re.sub(r"```.*?```", "", _text(page), flags=re.DOTALL)
    return re.findall(r"\[[^]]*\]\(([^)\s]+)\)", prose)


def _id(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_no_link_is_dead(page: Path) -> None:
    for link in _links(page):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page.name}: {link}"


def test_the_index_links_to_every_guide() -> None:
    linked = set(_links(ROOT / "docs" / "index.md"))
    others = {page.name for page in GUIDES} | {"asyncapi.yaml", "openapi.yaml"}
    assert others - {"index.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_file_named_exists(page: Path) -> None:
    folders = "application|domain|adapters|entrypoints|tests|assets|benchmarks|deploy|docs"
    for path in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/.*-]*\w)", _text(page)):
        # Not a file of ours; and what a command leaves.
        if path != "application/json" and not path.startswith("benchmarks/results"):
            assert list(ROOT.glob(path)), f"{page.name}: {path}"


@pytest.mark.parametrize("page", COMMANDS_IN, ids=_id)
def test_every_command_is_accepted(page: Path) -> None:
    makefile = _text(ROOT / "Makefile")
    for targets in re.findall(
        r"(?<!\w)make ((?:(?:demo|test|lint|bench|[a-z-]+gpu) ?)+)", _text(page)
    ):
        for target in targets.split():
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: {target}"
    text = _text(page).replace("\\\n", " ")
    for module, rest in re.findall(r"python -m (entrypoints\.\w+)([^\n`]*)", text):
        parser = import_module(module).build_parser()
        parser.add_common_options()
        try:
            parser.parse_args(shlex.split(rest))
        except SystemExit as ended:
            if ended.code:
                pytest.fail(f"{page.name}: {module}{rest}")


@pytest.mark.parametrize("page", GUIDES, ids=_id)
def test_every_setting_named_exists(page: Path) -> None:
    settings = {name.upper() for name in [*Settings.model_fields, *PLATFORM_NAMES]}
    for quoted in re.findall(r"`([^`\n]+)`", _text(page)):
        for name in re.findall(r"(?<![\w./-])([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?![\w.])", quoted):
            known = settings | NOT_OURS | set(FailureCode)
            assert name in known, f"{page.name}: `{quoted}` names {name}"


def test_the_changelog_has_the_version() -> None:
    project = tomllib.loads(_text(ROOT / "pyproject.toml"))["project"]
    changelog = _text(ROOT / "CHANGELOG.md")
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert releases[0] == project["version"]
    assert changelog.index("## [Unreleased]") < changelog.index(f"## [{releases[0]}]")
    assert releases == sorted(releases, key=lambda v: [*map(int, v.split("."))], reverse=True)


def test_the_table_of_workers_follows_its_formula() -> None:
    rows = re.findall(
        r"^\| ([\d.]+) \| (\d+) \|$", _text(ROOT / "docs/scale-out.md"), re.MULTILINE
    )
    assert rows
    for load, workers in rows:
        assert int(workers) == math.ceil(float(load) / 0.8)
