"""The comparison with other trainers, with fakes in place of those trainers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.peers.__main__ import main, summary
from benchmarks.peers.measure import Run, run, speed
from benchmarks.peers.programs import Job, Program, diffusers_example, ours, sd_scripts
from benchmarks.peers.tables import peers_tables


def _job(folder: Path) -> Job:
    base, images = folder / "base", folder / "images"
    (base / "tokenizer").mkdir(parents=True)
    images.mkdir()
    for name in ("a", "b"):
        (images / f"{name}.png").write_bytes(b"")
        (images / f"{name}.txt").write_text(f"caption {name}\n")
    return Job(
        base=base,
        images=images,
        scratch=folder,
        device="cpu",
        resolution=64,
        batch_size=1,
        rank=4,
        steps=10,
    )


def test_each_program_is_given_the_same_work(tmp_path: Path) -> None:
    job = _job(tmp_path)
    programs = [
        ours(job),
        sd_scripts(job, tmp_path, "python", stub_torchvision=False),
        diffusers_example(job, tmp_path / "script.py", "python", stub_torchvision=True),
    ]
    for program in programs:
        assert {str(job.base), "64", "4"} <= set(program.command), program.name
    assert "5" in programs[0].command  # epochs of two images
    metadata = (tmp_path / "diffusers-example" / "images" / "metadata.jsonl").read_text()
    assert json.loads(metadata.splitlines()[0]) == {"file_name": "a.png", "text": "caption a"}


def test_sd_scripts_gets_the_tokenizer_in_the_older_form(tmp_path: Path) -> None:
    job = _job(tmp_path)
    model = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"], "ab b"]}
    file = job.base / "tokenizer" / "tokenizer.json"
    file.write_text(json.dumps({"model": model}))
    sd_scripts(job, tmp_path, "python", stub_torchvision=False)
    (folder,) = (tmp_path / "sd-scripts" / "tokenizers").iterdir()
    assert json.loads((folder / "vocab.json").read_text()) == model["vocab"]
    assert (folder / "merges.txt").read_text() == "#version: 0.2\na b\nab b\n"


def test_progress_output_is_read_as_each_program_writes_it(tmp_path: Path) -> None:
    job = _job(tmp_path)
    assert ours(job).steps_done("epoch 3/5 (60 %), loss 0.1, 2.0 steps/s") == 6
    kohya = sd_scripts(job, tmp_path, "python", stub_torchvision=False)
    assert kohya.steps_done("steps:  15%|#5   | 3/20 [00:04<00:20,  5.02it/s]") == 3
    assert kohya.steps_done("epoch is incremented.") is None


_PROGRAM = """
import pathlib, sys, time
for step in range(1, 6):
    time.sleep(0.05)
    print(f"steps: 1%|# | {step}/5 [0:00<0:00]", end="\\r", flush=True)
pathlib.Path(sys.argv[1]).write_text("weights") if len(sys.argv) > 1 else sys.exit(3)
"""


def _program(folder: Path, *arguments: str) -> Program:
    return Program(
        name="stand-in",
        command=[sys.executable, "-c", _PROGRAM, *arguments],
        weights=folder / "weights",
        steps_done=lambda line: (
            int(line.split("| ")[-1].split("/")[0]) if "steps:" in line else None
        ),
    )


def test_speed_is_taken_from_the_progress_after_the_warm_up() -> None:
    assert speed([(1, 0.0), (2, 9.0), (5, 10.5)], warm_up=2) == 2.0
    with pytest.raises(RuntimeError, match="raise --steps"):
        speed([(1, 0.0), (2, 9.0)], warm_up=2)


def test_a_program_is_measured_from_its_start_to_its_end(tmp_path: Path) -> None:
    measured = run(_program(tmp_path, str(tmp_path / "weights")), warm_up=2)
    assert measured.program == "stand-in"
    assert measured.total_s >= 0.25
    assert measured.steps_per_s > 0


def test_a_program_that_fails_is_reported_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"stand-in ended with 3:\n.*steps:"):
        run(_program(tmp_path), warm_up=2)


def test_ratios_are_taken_round_by_round(tmp_path: Path) -> None:
    def made(program: str, speed: float, total: float) -> Run:
        return Run(
            program=program, steps_per_s=speed, total_s=total, peak_mb=100, gpu_peak_mb=None
        )

    runs = [made("ours", 4, 10), made("peer", 2, 15), made("ours", 9, 10), made("peer", 3, 20)]
    results = summary(runs)
    assert results["rounds"] == 2
    assert results["rows"][1]["our_speed_ratio"] == [2.5, 2.0, 3.0]
    assert results["rows"][1]["our_total_ratio"] == [1.75, 1.5, 2.0]
    facts = {
        "device": "cpu", "date": "2026-11-30", "base": "small", "resolution": 64,
        "batch_size": 1, "rank": 4, "steps": 10, "versions": {"peer": {"torch": "2.13"}},
    }  # fmt: skip
    (tmp_path / "peers-cpu.json").write_text(json.dumps({**facts, **results}))
    table = peers_tables(tmp_path)
    assert "| peer | 2.5 | 17.5 | 100 | 2.5 (2.0 to 3.0) | 1.75 (1.5 to 2.0) |" in table


def test_a_warm_up_of_all_steps_is_rejected_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--diffusers-example", "script.py", "--steps", "8", "--warm-up", "40"]
    monkeypatch.setattr("sys.argv", ["peers", *options])
    with pytest.raises(SystemExit, match="raise --steps or lower --warm-up"):
        main()
