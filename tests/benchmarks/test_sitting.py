"""The script of a sitting on a GPU, with a command that takes no time in place of Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.commands import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu" / "sitting.sh"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Prints its arguments, and whether bytecode would be kept."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "kept: ${PYTHONDONTWRITEBYTECODE:-yes}: $*"\n')
    program.chmod(0o755)
    return program


def sitting(python: Path, *arguments: str) -> tuple[str, str]:
    """The script's output, and its log."""
    folder = python.parent / "results"
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments, str(folder)],
        env={**os.environ, "PYTHON": str(python), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout, (folder / "log.txt").read_text("utf-8")


def test_a_sitting_takes_at_most_8_minutes(python: Path) -> None:
    output, _ = sitting(python)
    parts = re.findall(r"^([\w-]+): exit 0 after \d+ s of (\d+)$", output, re.MULTILINE)
    assert len(parts) == len(output.splitlines()) == 6
    assert sum(int(limit) for _, limit in parts) <= 480


def test_each_part_keeps_bytecode_and_the_tests_need_no_other_file(python: Path) -> None:
    _, log = sitting(python, "--tiny")
    commands = re.findall("^kept: yes: (.+)$", log, re.MULTILINE)
    assert len(commands) == 6
    files = {word for word in commands[0].split() if word.startswith("tests/")}
    assert "tests/diffusion/test_gpu.py" in files
    assert all(re.search(r"mark\.(gpu|kernels)", (ROOT / file).read_text()) for file in files)
    for command in commands[1:]:
        assert "--tiny --device cpu" in command


def test_its_commands_need_no_library_of_the_entry_points() -> None:
    modules = ["benchmarks.gpu.__main__", "benchmarks.gpu.job", "benchmarks.gpu.kernels"]
    modules += ["tests.diffusion.test_gpu", "tests.diffusion.test_kernels"]
    program = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = {name.partition(".")[0] for name in done.stdout.split()}
    assert "benchmarks" in names
    assert "entrypoints" not in names
