"""The GPU benchmark on a CPU: every row runs, and the tables can show it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.diffusion.base.model import BaseModel, load_base
from adapters.diffusion.execution import ExecutionOptions
from benchmarks.gpu import __main__ as command
from benchmarks.gpu.bench import MAX_WAIT, Bench, prepare
from benchmarks.gpu.job import whole_job
from benchmarks.gpu.kernels import kernels_of_step
from benchmarks.gpu.results import RECIPE, kept_results, write_results
from benchmarks.gpu.speed import count_flop, measure_recipe, measure_trick, tricks
from benchmarks.gpu.tables import NOTHING, device_tables, gpu_tables
from entrypoints.models import SMALL_BASE
from tests.services.commands import ROOT, environment

CARD: dict[str, Any] = {"device": "card", "memory_gib": 8, "versions": {}, "matmul_tflops": 1.0}


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of a short run of the benchmark on the small base."""
    file = tmp_path_factory.mktemp("results") / "card.json"
    command = ["benchmarks.gpu", "--tiny", "--device", "cpu", "--json", str(file)]
    command += ["--batches", "1", "--styles", "2", "--epochs", "1", "--seconds", "0.05"]
    # The kernels' row includes all other optimizations.
    command += ["--rounds", "1", "--ways", "recipe", "kernels"]
    # A new process, not a fork: the recipe needs PEFT, which our commands do not import.
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return results


@pytest.mark.integration
def test_every_row_runs(rehearsed: dict[str, Any]) -> None:
    rows = rehearsed["rows"]
    assert [row for row in rows if "error" in row] == []
    assert [row["name"] for row in rows if "batch" in row] == [
        "plain recipe, eager",
        "+ fused kernels",
    ]
    (styles,) = (row for row in rows if "styles" in row)
    assert (styles["styles"], styles["in_one_pass"]) == (2, 2)
    assert (styles["recordings"], styles["still_recorded"]) == (1, True)
    cost, job, after, following = rows[-4:]
    assert (cost["name"], cost["scored_rounds"]) == ("measured losses and scores", 0)
    assert (job["name"], after["previews"]) == ("whole job", 4)
    assert following["second_job_open_s"] > 0
    assert job["steps"] == 20
    phases = ("imports_s", "load_base_s", "encode_s", "train_s")
    assert job["total_s"] == pytest.approx(sum(job[phase] for phase in phases), abs=0.1)


@pytest.mark.integration
def test_the_tables_have_every_row(rehearsed: dict[str, Any], tmp_path: Path) -> None:
    tables = device_tables(rehearsed)
    rows = rehearsed["rows"]
    for row in rows[:-4]:
        assert f"| {row['steps_per_s' if 'batch' in row else 'images_per_s']} |" in tables
    cost, job, after, following = rows[-4:]
    assert f"differ by {cost['ratio'] - 1:.1%} (" in tables
    assert f"{job['total_s']} s from the process's start to weights" in tables
    assert f"The first epoch takes {job['first_epoch_s']} s" in tables
    assert f"A checkpoint takes {after['checkpoint_s']} s" in tables
    assert f"its first step takes {following['second_job_first_step_s']} s" in tables
    (tmp_path / "card.json").write_text(json.dumps(rehearsed), "utf-8")
    (tmp_path / "cpu.json").write_text("{}", "utf-8")
    assert gpu_tables(tmp_path) == tables


@pytest.mark.integration
def test_operations_and_kernels_of_a_step_are_counted(tmp_path: Path) -> None:
    options = argparse.Namespace(tiny=True, seconds=0.0)
    bench = prepare(options, torch.device("cpu"), tmp_path)
    assert count_flop(bench) > 1e7
    assert "aten::addmm" in kernels_of_step(bench, ExecutionOptions(), 1)


def test_the_recipe_runs_in_torchs_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(SMALL_BASE))
    bench = Bench(torch.device("cpu"), base, (), 64, seconds=0.0)
    bench.trainer(ExecutionOptions(channels_last=True))
    layouts: list[bool] = []

    def steps(base: BaseModel, *_: object) -> Iterator[float]:
        while True:
            layouts.append(base.unet.conv_in.weight.is_contiguous())
            yield 0.0

    monkeypatch.setattr("benchmarks.gpu.speed.plain_steps", steps)
    monkeypatch.setattr("benchmarks.gpu.speed.measure", lambda bench, batch, step: step())
    measure_recipe(bench, 1)
    assert layouts == [True]


def test_runs_that_are_measured_together_wait_for_one_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(
        "benchmarks.gpu.bench.DiffusionTrainer",
        lambda *_, max_wait, **__: waits.append(max_wait),
    )
    base: Any = None
    bench = Bench(torch.device("cpu"), base, (), 64, seconds=1.0)
    for slots in (1, 2):
        bench.trainer(ExecutionOptions(), slots)
    assert waits == [MAX_WAIT, MAX_WAIT]


def test_a_jobs_row_is_noted_before_what_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "python"
    job.write_text("#!/bin/sh\necho '{\"total_s\": 1.5}'\necho it broke >&2\nexit 3\n")
    job.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(job))
    rows: list[dict[str, Any]] = []
    options = argparse.Namespace(tiny=True, epochs=1)
    whole_job(options, torch.device("cpu"), tmp_path, rows.append)
    assert rows == [
        {"name": "whole job", "total_s": 1.5},
        {
            "name": "checkpoint and previews",
            "error": "RuntimeError: the job's process ended with exit status 3",
        },
    ]
    assert "it broke" in capfd.readouterr().err


def test_styles_that_were_not_recorded_are_marked() -> None:
    row = {
        "part": "styles",
        "name": "styles at once",
        "styles": 4,
        "in_one_pass": 4,
        "images_per_s": 9.5,
    }
    row |= {"times_one_at_a_time": 0.9, "recordings": 0, "still_recorded": False}
    assert "| 4 | 4, eager | 9.5 | 0.9 |" in device_tables({**CARD, "rows": [row]})


@pytest.mark.integration
def test_steps_that_were_not_recorded_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("benchmarks.gpu.bench.Rerun.record", fails)
    options = argparse.Namespace(tiny=True, seconds=0.0)
    bench = prepare(options, torch.device("cpu"), tmp_path)
    bench = replace(bench, seconds=0.01)
    rows = [
        {"part": "speed", "batch": 1, "name": way.name, **measure_trick(bench, way, 1)}
        for name, way in tricks(torch.float32).items()
        if name in ("eager", "graphs")
    ]
    tables = device_tables({**CARD, "rows": rows})
    assert f"| {rows[0]['steps_per_s']} |" in tables
    assert f"| {rows[1]['steps_per_s']}, eager |" in tables


def test_trainer_is_compared_with_the_recipe_whatever_their_order() -> None:
    speeds = {"+ fused kernels": 10.0, RECIPE: 4.0}
    rows = [
        {"part": "speed", "batch": 1, "name": name, "steps_per_s": speed}
        | {"images_per_s": 1.0, "ms_per_step": 1.0, "share_of_matmul_limit": 0.5}
        for name, speed in speeds.items()
    ]
    assert "| 1 | 4.0 | 10.0 | 2.5 |" in device_tables({**CARD, "rows": rows})
    assert "| 1 | - | - |" in device_tables({**CARD, "rows": rows[:1]})


def test_an_interruption_leaves_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "card.json"
    write_results(file, {"rows": [1]})

    def interrupted(path: Path, text: str, *_: object) -> None:
        with path.open("w") as opened:
            opened.write(text[:5])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_results(file, {"rows": [1, 2]})
    assert json.loads(file.read_text("utf-8")) == {"rows": [1]}


def test_remeasuring_one_part_keeps_the_rows_of_the_others(tmp_path: Path) -> None:
    facts = {"device": "card", "versions": {"torch": "2"}}
    limits = {"matmul_tflops": 1.5, "tflop_per_image": 0.5}
    rows = [{"part": "speed", "name": "a"}, {"part": "job", "name": "whole job"}]
    file = tmp_path / "card.json"
    assert kept_results(file, facts, ["job"]) == {"rows": []}
    file.write_text(json.dumps({**facts, **limits, "rows": rows}), "utf-8")
    assert kept_results(file, facts, ["job"]) == {"rows": rows[:1], **limits}
    assert kept_results(file, facts, ["speed"]) == {"rows": rows[1:]}
    assert kept_results(file, {**facts, "versions": {"torch": "3"}}, ["job"]) == {"rows": []}
    assert kept_results(file, {**facts, "device": "another"}, ["job"]) == {"rows": []}


def test_a_part_can_be_added_to_a_file_without_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"device": "card", "versions": {}, "matmul_tflops": 1.0}
    job, styles = {"part": "job", "name": "whole job"}, {"name": "styles at once"}
    file = tmp_path / "card.json"
    file.write_text(json.dumps({**facts, "rows": [job]}), "utf-8")
    monkeypatch.setattr(command, "facts", lambda _: dict(facts))
    monkeypatch.setattr(command, "prepare", lambda *_: None)
    monkeypatch.setattr(command, "several_styles", lambda options, bench, note: note(styles))
    monkeypatch.setattr(sys, "argv", ["gpu", "--parts", "styles", "--json", str(file)])
    command.main()
    assert json.loads(file.read_text("utf-8"))["rows"] == [{"part": "styles", **styles}, job]


def test_a_failed_row_says_so_and_affects_no_other(tmp_path: Path) -> None:
    failed = {"error": "OutOfMemoryError: CUDA out of memory", "name": "+ CUDA graphs"}
    results = {
        "device": "card",
        "memory_gib": 8,
        "versions": {"torch": "2"},
        "matmul_tflops": 100.0,
        "rows": [
            {"part": "speed", "batch": 8, **failed},
            {"part": "styles", "styles": 4, **failed},
            {**failed, "part": "job", "name": "whole job"},
        ],
    }
    tables = device_tables(results)
    assert "| + CUDA graphs | OutOfMemoryError |" in tables
    assert "| 8 | - | - |" in tables
    assert "| 4 | OutOfMemoryError |" in tables
    assert "Whole job failed: OutOfMemoryError: CUDA out of memory" in tables
    assert gpu_tables(tmp_path) == NOTHING
