"""Output of a local run that delivers no style; nothing is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dependency_injector import providers
from PIL import Image

from adapters.clock import SystemClock
from adapters.memory import MemoryReporter, MemoryTrainer
from application.ports import BlobDenied, BlobUnavailable, TrainingSession
from assets.drawing import draw_style_set
from domain.failure import Failure, FailureCode, TrainingFailed
from domain.training_plan import TrainingPlan
from entrypoints import local_run
from entrypoints.train import main

DIVERGED = TrainingFailed(Failure(FailureCode.LOSS_DIVERGED, "The loss is no number any more."))


class Faulty(MemoryTrainer):
    """Raises the given errors, one at the start of each run."""

    def __init__(self) -> None:
        super().__init__(SystemClock(), step_seconds=0.0)
        self.faults: list[Exception] = []
        self.frozen = SimpleNamespace(
            name="a base", native_resolution=64, fingerprint="a base", is_sd15=False
        )

    @contextmanager
    def open(self, plan: TrainingPlan, resume: bytes | None) -> Iterator[TrainingSession]:
        if self.faults:
            raise self.faults.pop(0)
        with super().open(plan, resume) as session:
            yield session


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Faulty:
    faulty, build = Faulty(), local_run.build_container

    def build_with_it(*arguments: Any) -> Any:
        container = build(*arguments)
        container.base_model.override(providers.Object(faulty.frozen))
        container.trainer.override(providers.Object(faulty))
        container.reporter.override(providers.Object(MemoryReporter()))
        return container

    monkeypatch.setattr(local_run, "build_container", build_with_it)
    return faulty


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr("entrypoints.local_run.time.sleep", waited.append)
    return waited


Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """The command: its exit code, its outcome, and its log."""
    monkeypatch.chdir(tmp_path)
    draw_style_set(tmp_path / "images", count=1, seed=3)

    def command(*options: str) -> tuple[int, dict[str, Any], str]:
        code = main(["images", "--out", "out", "--json", "--epochs", "2", *options])
        printed = capsys.readouterr()
        return code, json.loads(printed.out), printed.err

    return command


def test_a_failed_run_is_reported_with_its_reason_and_restarted(trainer: Faulty, run: Run) -> None:
    trainer.faults = [DIVERGED]
    code, outcome, log = run()
    assert code == 1
    assert (outcome["result"], outcome["code"]) == ("failed", "LOSS_DIVERGED")
    assert outcome["message"] == "The loss is no number any more."
    assert outcome["report"] == []
    assert outcome["weights"] is None
    assert "LOSS_DIVERGED: The loss is no number any more." in log

    code, outcome, _ = run()
    assert (code, outcome["result"], outcome["code"]) == (0, "completed", None)


@pytest.mark.parametrize("kind", [OSError, BlobDenied, BlobUnavailable])
def test_an_error_ends_the_command_and_the_same_command_resumes(
    trainer: Faulty, run: Run, pauses: list[float], kind: type[Exception]
) -> None:
    trainer.faults = [kind("the disk is unavailable")]
    code, outcome, log = run()
    assert code == 1
    assert "the disk is unavailable" in outcome["message"]
    assert f"not finished: {outcome['message']}" in log
    assert pauses == [], "only the lease of another run is waited for"
    assert run()[0] == 0


@pytest.mark.parametrize(
    ("options", "epochs"),
    [(["--checkpoint-every", "1"], [1, 2, 3, 4, 5]), ([], [2, 4, 5])],
    ids=["option", "setting"],
)
def test_every_requested_checkpoint_is_kept(
    trainer: Faulty,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    epochs: list[int],
) -> None:
    monkeypatch.setenv("CHECKPOINT_EVERY", "2")
    code, outcome, _ = run("--epochs", "5", *options)
    assert (code, outcome["checkpoint_epoch"]) == (0, 5)
    stored = sorted(path.name for path in tmp_path.glob("out/jobs/*/checkpoints/*"))
    assert [int(re.findall(r"\d+", name)[0]) for name in stored] == epochs


def test_warnings_are_printed_before_training(trainer: Faulty, run: Run, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((1200, 300)).save(tmp_path / "images" / "wide.png")
    log = run()[2]
    before, training, _ = log.partition("training on 2")
    assert training
    assert "only 2 usable " in before
    assert "1 of 2 images lose more than 10% to cropping (wide.png 40%)" in before
    assert "will not load in Stable Diffusion 1.5" in before
    assert "--base-model" in before
    (tmp_path / "images" / "wide.png").unlink()
    trainer.frozen.is_sd15 = True
    log = run("--out", "other")[2]
    assert "only 1 usable " in log
    assert "cropping" not in log
    assert "will not load" not in log


def test_previews_can_be_disabled(
    trainer: Faulty, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Any] = []
    plain = MemoryReporter.render

    def render(self: MemoryReporter, report: Any) -> Any:
        reports.append(report)
        return plain(self, report)

    monkeypatch.setattr(MemoryReporter, "render", render)
    code, outcome, log = run("--preview-share", "0")
    assert code == 0, (outcome, log)
    assert "writing the report" in log
    assert "previews" not in log
    code, outcome, log = run("--out", "other")
    assert code == 0, outcome
    assert "drawing previews and writing the report" in log
    without, usual = reports
    assert (without.before, without.after, without.checkpoint_previews) == ((), (), ())
    assert usual.before
    assert run("--preview-share", "2", "--out", "third")[0] == 2
    assert run("--preview-steps", "0", "--out", "third")[0] == 2
    assert run("--preview-steps", "1001", "--out", "third")[0] == 2


def test_images_may_be_symlinks(trainer: Faulty, run: Run, tmp_path: Path) -> None:
    (image,) = (path for path in (tmp_path / "images").iterdir() if path.suffix != ".txt")
    image.rename(tmp_path / "elsewhere")
    image.symlink_to(tmp_path / "elsewhere")
    assert run()[0] == 0


def test_changed_inputs_start_another_run(trainer: Faulty, run: Run, tmp_path: Path) -> None:
    assert run()[0] == 0
    (image,) = (path for path in (tmp_path / "images").iterdir() if path.suffix != ".txt")

    def is_another(*options: str) -> bool:
        code, outcome, _ = run(*options)
        return code == 2 and "holds another run" in outcome["message"]

    assert is_another("--tags", "ink")
    assert is_another("--style-id", "7")
    assert is_another("--rank", "4")
    with changed(image.with_suffix(".txt")) as caption:
        caption.write_text("in other words")
        assert is_another()
    with changed(image):
        Image.linear_gradient("L").save(image)
        assert is_another()
    renamed = image.rename(image.with_stem("renamed"))
    image.with_suffix(".txt").rename(renamed.with_suffix(".txt"))
    assert is_another()
    renamed.with_suffix(".txt").rename(image.with_suffix(".txt"))
    renamed.rename(image)
    assert run()[0] == 0, "as it was"
    trainer.frozen.fingerprint = "another base"
    assert is_another()


@contextmanager
def changed(file: Path) -> Iterator[Path]:
    """Restore the file's content after the with-block."""
    before = file.read_bytes()
    yield file
    file.write_bytes(before)


def test_duplicate_images_are_reported_in_one_line(
    trainer: Faulty, run: Run, tmp_path: Path
) -> None:
    (image,) = (tmp_path / "images").glob("*.[jpw]*")
    for number in range(20):
        (tmp_path / "images" / f"copy{number:02}.png").write_bytes(image.read_bytes())
    lines = [line for line in run()[2].splitlines() if "same image" in line]
    assert len(lines) == 1
    assert lines[0].startswith("the same image: ")
    assert lines[0].endswith(" and 13 more")


def test_a_large_scan_is_used_and_a_damaged_one_is_reported_with_the_reason(
    trainer: Faulty, run: Run, tmp_path: Path
) -> None:
    (image,) = (tmp_path / "images").glob("*.[jpw]*")
    scan = Image.open(image).resize((2000, 2000))
    scan.save(tmp_path / "images" / "scan.png", compress_level=0)
    assert (tmp_path / "images" / "scan.png").stat().st_size > 10 * 1024**2
    image.write_bytes(image.read_bytes()[:-2])
    code, _, log = run()
    assert code == 0
    assert "left out" not in log
    assert f"{image.name} is used: its end is missing, but its pixels are complete" in log


def test_kohya_folder_names_set_the_number_of_repeats(
    trainer: Faulty, run: Run, tmp_path: Path
) -> None:
    draw_style_set(tmp_path / "images" / "3_ink", count=2, seed=4)
    code, outcome, log = run("--repeats-from-folders")
    assert (code, outcome["steps"]) == (0, 2 * 3 * 2)
    assert "not used: " in log, "the image beside the folders"
