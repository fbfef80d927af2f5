"""The local command as a user runs it: a whole run, an interruption, and invalid input."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import signal
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from adapters.clock import SystemClock
from adapters.filesystem import FileBlobStore
from application.job_store import JobStore, StorageKeys
from application.lease import LeaseTerms
from application.stop_signal import StopSignal
from assets.drawing import draw_style_set
from domain.location import Bucket
from entrypoints import local_run
from entrypoints.train import main
from tests.services.commands import environment
from tests.services.fork_server import Command
from tests.services.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("awaited_loads")]

QUICK = ["--epochs", "2", "--resolution", "64", "--device", "cpu", "--preview-steps", "2"]
AS_TRAINED = [*QUICK, "--rank", "4"]
"""Options of the fixture ``trained``."""
SMALL_BASE = Path("assets/small_base")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw_style_set(folder, count=3, seed=5)
    return folder


@dataclass(frozen=True)
class Trained:
    """A finished run, with ``--json``."""

    out: Path
    outcome: dict[str, Any]
    log: str


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("trained") / "out"
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(StringIO()) as printed,
        redirect_stderr(StringIO()) as log,
    ):
        patch.setenv("BASE_MODEL", str(SMALL_BASE.resolve()))
        assert main([str(images), "--out", str(out), "--json", *AS_TRAINED]) == 0
    return Trained(out, json.loads(printed.getvalue()), log.getvalue())


@pytest.fixture
def out(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the finished run's folder."""
    return shutil.copytree(trained.out, tmp_path / "out")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, without the machine's settings or a `.env` file."""
    for name in ("BASE_MODEL", "DEVICE", "BASE_MODEL_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BASE_MODEL", str(SMALL_BASE.resolve()))
    monkeypatch.chdir(tmp_path)


def files_in(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_a_folder_of_images_becomes_a_style_with_its_report(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_in(images)
    out = tmp_path / "new" / "watercolour"
    command = [str(images), "--out", str(out), "--style-id", "12", *QUICK]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "models/watercolour.safetensors" in printed
    assert "only 3 usable images" in printed
    assert "will activate the style" not in printed, "each has a caption"

    with safe_open(out / "models" / "watercolour.safetensors", "np") as file:
        assert any(key.endswith("lora_down.weight") for key in file.keys())  # noqa: SIM118 - not a dict
        assert file.metadata()["ss_output_name"] == "watercolour"
        assert file.metadata()["modelspec.title"] == "watercolour"
    for name in ("loss.png", "previews.png"):
        Image.open(out / name).verify()
    assert "<html" in (out / "report.html").read_text()
    assert list(out.glob("jobs/*/checkpoints/*.safetensors"))
    assert files_in(images) == before, "the images' folder is only read"

    weights = (out / "models" / "watercolour.safetensors").stat().st_mtime_ns
    assert main(command) == 0
    assert "complete already" in capsys.readouterr().out
    assert (out / "models" / "watercolour.safetensors").stat().st_mtime_ns == weights


def test_a_named_style_has_its_credits_and_captions_of_another_extension(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, photo = tmp_path / "images", tmp_path / "out", tmp_path / "photo.png"
    shutil.copytree(images, folder)
    for caption in folder.glob("*.txt"):
        caption.rename(caption.with_suffix(".caption"))
    Image.new("RGB", (600, 300), (200, 30, 30)).save(photo)
    credits = ["--author", "Ada", "--license", "CC BY 4.0", "--thumbnail", str(photo)]
    command = [str(folder), "--out", str(out), "--name", "Ink wash", "--trigger-word", "inkwash"]
    assert main([*command, *credits, "--caption-extension", ".caption", *QUICK]) == 0
    assert "not used" not in capsys.readouterr().out
    models = out / "models"
    with safe_open(models / "Ink wash.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == "Ink wash"
    assert (metadata["modelspec.author"], metadata["modelspec.license"]) == ("Ada", "CC BY 4.0")
    head, _, data = metadata["modelspec.thumbnail"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(BytesIO(base64.b64decode(data))).size == (256, 128)
    Image.open(models / "Ink wash.preview.png").verify()
    shown = json.loads((models / "Ink wash.json").read_text(encoding="utf-8"))
    assert (shown["activation text"], shown["sd version"]) == ("inkwash", "Unknown")
    assert json.loads(metadata["ss_tag_frequency"])["Ink wash"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "a/b"], "--name: 'a/b' is not a name for a file"),
        (["--thumbnail", "missing.png"], "--thumbnail missing.png: cannot be read"),
        (["--thumbnail", "cut.png"], "--thumbnail cut.png: cannot be read"),
        (["--thumbnail", "far_too_large.png"], "far_too_large.png: cannot be read"),
    ],
)
def test_an_invalid_name_or_thumbnail_is_rejected(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "far_too_large.png" in options:
        Image.new("1", (20_000, 20_000)).save("far_too_large.png", compress_level=1)
    Image.new("RGB", (300, 300)).save("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:40])
    assert main([str(images), "--out", str(tmp_path / "out"), *options, *QUICK]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_with_json_the_outcome_is_one_object_and_all_other_output_on_stderr(
    images: Path, trained: Trained, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(images), "--out", str(out), "--json", *AS_TRAINED]) == 0
    again = capsys.readouterr()
    assert "training on 3 images" in trained.log
    assert "complete already" in again.err
    for outcome in (trained.outcome, json.loads(again.out)):
        assert outcome["result"] == "completed"
        weights = Path(outcome["weights"]).read_bytes()
        assert outcome["sha256"] == hashlib.sha256(weights).hexdigest()
        assert outcome["bytes"] == len(weights)
        assert outcome["epochs"] == 2
        assert all(Path(path).is_file() for path in outcome["report"])
        assert len(outcome["report"]) == 3


def test_a_missing_report_is_written_by_the_same_command(images: Path, out: Path) -> None:
    (out / "report.html").unlink()
    style = next((out / "models").glob("*.safetensors"))
    weights = style.read_bytes()
    assert main([str(images), "--out", str(out), *AS_TRAINED]) == 0
    assert (out / "report.html").is_file()
    assert style.read_bytes() == weights


def test_without_the_last_checkpoint_a_missing_report_trains_nothing(
    images: Path, out: Path, tmp_path: Path
) -> None:
    (folder,) = out.glob("jobs/*/checkpoints")
    folder.rename(tmp_path / "checkpoints")
    (out / "report.html").rename(tmp_path / "report.html")
    style = next((out / "models").glob("*.safetensors"))
    written = style.stat().st_mtime_ns
    assert main([str(images), "--out", str(out), *AS_TRAINED]) == 0
    assert style.stat().st_mtime_ns == written
    (tmp_path / "checkpoints").rename(folder)
    (tmp_path / "report.html").rename(out / "report.html")


def test_a_missing_style_is_trained_again_and_a_changed_one_kept(
    images: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(images), "--out", str(out), *AS_TRAINED]
    file = out / "models" / "out.safetensors"
    weights = file.read_bytes()
    file.parent.rename(tmp_path / "elsewhere")

    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "is missing in" in printed
    assert "resuming from epoch 2" in printed
    assert "trial runs only" in printed
    assert file.read_bytes() == weights

    file.write_bytes(b"merged with another")
    assert main(command) == 2
    assert "move it away" in capsys.readouterr().err
    assert file.read_bytes() == b"merged with another"


def test_skipped_images_are_named_once_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder, long = tmp_path / "images", "a-long-name-that-no-terminal-shows-in-one-line" * 2
    first, second, third = draw_style_set(folder, count=3, seed=5)
    first.rename(first.with_suffix(".jfif"))
    for image in (first, second, third):
        image.with_suffix(".txt").unlink()
    first.with_suffix(".txt").write_bytes("gr\u00fcn".encode("latin-1"))
    second.with_suffix(".TXT").write_text("a caption in capitals")
    (folder / f"{long}.png").write_bytes(b"not an image")
    (folder / "typo.txt").write_text("a caption of nothing")
    (folder / f"{third.name}.txt").write_text("a caption with one suffix too many")
    (folder / "more").mkdir()

    out = folder / "results" / "first"
    assert main([str(folder), "--out", str(out), *QUICK]) == 0
    printed = "\n".join(capfd.readouterr())
    assert f"left out {long}.png: it is not an image of a supported format; please send" in printed
    assert (
        f"not used: {third.name}.txt (a caption is {third.stem}.txt), more/ (a folder), "
        "typo.txt (no image of that name)\n"
    ) in printed
    assert "1 of 3 images have a caption, the others get an empty one\n" in printed
    fault = f"the caption {first.stem}.txt is left out: it is not UTF-8; save it as UTF-8"
    assert printed.count(fault) == 1
    assert "s3://" not in printed
    report = (out / "report.html").read_text()
    assert "Images left out" in report
    assert f"{long}.png" in report
    assert f"{first.stem}.jfif" in report
    assert "a caption in capitals" in report


def test_a_concurrent_second_command_is_rejected(
    images: Path,
    trained: Trained,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terms = LeaseTerms(1.0)
    command = [str(images), "--out", str(out), "--json", *AS_TRAINED]
    store = JobStore(
        blobs=FileBlobStore({"out": out}),
        keys=StorageKeys(Bucket("out")),
        clock=SystemClock(),
        events=lambda _: None,
        worker="other",
        lease_terms=terms,
    )
    task_id = trained.outcome["task_id"]
    store.delete_record(task_id)
    monkeypatch.setattr(local_run, "LEASE", terms)
    with store.lease(task_id).hold(StopSignal(), is_finished=lambda: True):
        assert main(command) == 1
    printed = capsys.readouterr()
    message = f"another run of this command is active in {out}; wait until it ends"
    assert message in printed.err
    assert json.loads(printed.out)["message"] == message


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_resumes(
    images: Path, tmp_path: Path
) -> None:
    command = ["entrypoints.train", str(images), "--out", "out", "--epochs", "400", *QUICK[2:]]
    pipe, env = subprocess.PIPE, environment()
    with Command(command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe) as first:
        eventually(lambda: [*tmp_path.glob("out/jobs/*/checkpoints/*")], within=120, running=first)
        first.send_signal(signal.SIGINT)
        printed, _ = first.communicate(timeout=60)
    assert first.returncode == 130, printed
    assert "stopping: saving a checkpoint" in printed
    assert "run the same command to resume from epoch" in printed

    with Command(command, cwd=tmp_path, env=env, stdout=pipe, stderr=None) as second:
        assert second.stdout is not None
        resumed = any("resuming from epoch" in line for line in second.stdout)
        second.kill()
    assert resumed


def broken_images(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.png").write_bytes(b"not an image")
    Image.new("RGB", (40, 40)).save(folder / "small.png")
    return folder


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no folder", "no such folder"),
        ("an image", "is a file; give the folder"),
        ("folder of folders", "or --repeats-from-folders for folders such as 10_style/"),
        ("empty folder", "it has no images"),
        ("no usable image", "small.png"),
        ("out is below a file", "is not a folder; give a folder that you can write"),
        ("out holds the images", "holds the images; give another folder"),
        ("epochs 0", "--epochs 0: give a whole number"),
        ("rate nan", "--learning-rate nan: give a number"),
        ("style 0", "--style-id 0"),
        ("no device", "--device gpu: give cpu, cuda"),
        ("base missing", "base model"),
        ("base is a pickle", "pickle"),
        ("base is no model", "model_index.json"),
    ],
)
def test_bad_input_gets_one_line_exit_code_2_and_leaves_nothing(
    case: str, message: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    source, target, options = images, out, list(QUICK)
    if case == "no folder":
        source = tmp_path / "nowhere"
    elif case == "an image":
        source = next(images.iterdir())
    elif case == "folder of folders":
        source = tmp_path / "set"
        (source / "10_style").mkdir(parents=True)
    elif case == "empty folder":
        source = tmp_path / "empty"
        source.mkdir()
    elif case == "no usable image":
        source = broken_images(tmp_path / "broken")
    elif case == "out is below a file":
        (tmp_path / "file").write_text("")
        target = tmp_path / "file" / "out"
    elif case == "out holds the images":
        source = target = tmp_path / "own"
        draw_style_set(source, count=1, seed=5)
    elif case == "epochs 0":
        options += ["--epochs", "0"]
    elif case == "rate nan":
        options += ["--learning-rate", "nan"]
    elif case == "style 0":
        options += ["--style-id", "0"]
    elif case == "no device":
        options += ["--device", "gpu"]
    elif case == "base missing":
        options += ["--base-model", str(tmp_path / "no-such-model.safetensors")]
    elif case == "base is a pickle":
        (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
        options += ["--base-model", str(tmp_path / "model.ckpt")]
    elif case == "base is no model":
        (tmp_path / "folder").mkdir()
        options += ["--base-model", str(tmp_path / "folder")]

    assert main([str(source), "--out", str(target), *options]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert not out.exists()

    assert main([str(source), "--out", str(target), "--json", *options]) == 2
    message = errors[0].removeprefix("error: ")
    assert json.loads(capsys.readouterr().out) == {"result": "refused", "message": message}


def test_with_json_an_invalid_command_line_is_an_outcome_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["images", "--out", "out", "--json", "--epochs", "many"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["message"] == "argument --epochs: invalid int value: 'many'"
    assert "usage: " in printed.err


def test_a_folder_of_another_run_is_left_alone(
    images: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: (out / file).read_bytes() for file in files_in(out)}
    assert main([str(images), "--out", str(out), *AS_TRAINED, "--seed", "3"]) == 2
    assert "another run with --seed 0 (now 3); give another folder" in capsys.readouterr().err
    assert main([str(images), "--out", str(out), *AS_TRAINED, "--tags", "ink"]) == 2
    assert "with other images, captions or tags" in capsys.readouterr().err
    assert {file: (out / file).read_bytes() for file in files_in(out)} == before


def test_a_missing_optimizer_is_one_line_and_nothing_is_written(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from adapters.diffusion import optimizer_libraries

    monkeypatch.setattr(optimizer_libraries, "find_spec", lambda _: None)
    out = tmp_path / "out"
    assert main([str(images), "--out", str(out), "--optimizer", "adamw8bit", *QUICK]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --optimizer adamw8bit: run pip install")
    assert "style-trainer[adam8bit]" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_style_is_trained_further_from_another_ones_file(
    images: Path, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, second = Path(trained.outcome["weights"]), tmp_path / "second"
    command = [str(images), "--out", str(second), "--network-weights", str(weights), *QUICK]
    assert main([*command, "--rank", "3"]) != 0
    assert "rank 4 and this run 3" in "".join(capsys.readouterr())
    assert main([*command[:2], str(tmp_path / "third"), *command[3:], "--dim-from-weights"]) == 0
    with safe_open(tmp_path / "third" / "models" / "third.safetensors", "np") as file:
        assert file.metadata()["ss_network_weights"] == "out.safetensors"
        assert file.metadata()["ss_network_dim"] == "4"
    assert main([*command[:4], str(images), *QUICK]) == 2
    assert "give a LoRA of Stable Diffusion 1.5" in capsys.readouterr().err
