"""What the README says about settings and commands is what the code has."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.gpu.tables import gpu_tables
from benchmarks.readme import BLOCK, FOLDER, GPU_BLOCK, RESULTS, figures_table
from entrypoints.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_setting_has_a_row() -> None:
    for name in Settings.model_fields:
        assert f"\n| `{name.upper()}` |" in README


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_ci_calls_the_test_command_of_the_readme() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "    make test\n" in README


def test_the_figures_are_those_that_were_measured() -> None:
    block = BLOCK.search(README)
    assert block
    assert figures_table(json.loads(RESULTS.read_text("utf-8"))) in block[0]


def test_the_figures_of_gpus_are_those_that_were_measured() -> None:
    block = GPU_BLOCK.search(README)
    assert block
    assert block[0].split("-->\n", 1)[1] == gpu_tables(FOLDER) + "<!-- end of GPUs -->"
