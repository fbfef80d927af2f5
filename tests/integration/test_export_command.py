"""`train --export` as a user runs it: conversions, and invalid input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adapters.lora_files.files import hashed
from adapters.lora_files.kohya_format import to_kohya
from adapters.lora_files.lora_formats import UNET, LayerWeights, LoraFormat
from entrypoints.train import main

pytestmark = pytest.mark.integration

PATH = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"


@pytest.fixture
def style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A style of one layer."""
    monkeypatch.chdir(tmp_path)
    layer = LayerWeights(torch.ones(2, 3).half(), torch.ones(4, 2).half(), 1.0)
    file = tmp_path / "models" / "style_9.safetensors"
    file.parent.mkdir()
    file.write_bytes(hashed(to_kohya({(UNET, PATH): layer}), {"ss_output_name": "style_9"}))
    return file


def files_in(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


@pytest.mark.parametrize(
    ("form", "files"),
    [
        ("kohya", ["style_9.safetensors"]),
        ("diffusers", ["pytorch_lora_weights.safetensors"]),
        ("peft", ["adapter_config.json", "adapter_model.safetensors"]),
    ],
)
def test_a_style_is_converted_and_back_again_under_its_name(
    style: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, files: list[str]
) -> None:
    out = tmp_path / "style_9"
    assert main(["--export", form, str(style), "--out", str(out)]) == 0
    written = [str(out / name) for name in files]
    assert capsys.readouterr().out.split() == written
    assert files_in(out) == files
    assert main(["--export", form, str(style), "--out", str(out), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome == {"result": "converted", "files": written}
    source = style if form == "kohya" else out
    assert main(["--export", "kohya", str(source), "--out", "back"]) == 0
    assert (tmp_path / "back" / "style_9.safetensors").read_bytes() == style.read_bytes()


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_dora_in_kohyas_format_gets_one_line_of_warning(
    style: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    layer = LayerWeights(torch.ones(2, 3), torch.ones(4, 2), 1.0, torch.ones(4))
    style.write_bytes(hashed(to_kohya({(UNET, PATH): layer}), {}))
    assert main(["--export", form, str(style), "--out", "out"]) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == (form == "kohya")
    assert all("DoRA" in line and "docs/format.md" in line for line in warnings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["missing.safetensors", "--out", "o"],
            "missing.safetensors: no such file or folder; give a LoRA",
        ),
        (["empty", "--out", "o"], "empty: the folder holds no .safetensors file"),
        (["STYLE", "--out", "o", "--epochs", "3"], "--epochs: has no effect with --export"),
        (["STYLE", "--out", "o", "--name", "mine"], "--name: has no effect with --export"),
        (["STYLE", "--out", "o", "--style-id", "2"], "--style-id: has no effect with --export"),
        (["STYLE", "--out", "o", "--device", "cpu"], "--device: has no effect with --export"),
        (
            ["STYLE", "--out", "o", "--repeats-from-folders"],
            "--repeats-from-folders: has no effect with --export",
        ),
        (["STYLE", "--out", "STYLE"], "is not a folder; give a folder that you can write"),
        (["STYLE", "--out", "models"], "holds the LoRA itself"),
    ],
)
def test_bad_input_is_one_line_with_its_remedy_and_writes_nothing(
    style: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    before = files_in(tmp_path)
    arguments = [str(style) if argument == "STYLE" else argument for argument in arguments]
    assert main(["--export", "kohya", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("form", LoraFormat)
def test_a_conversion_never_replaces_its_source(
    style: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: LoraFormat
) -> None:
    source = tmp_path / "style_9"
    assert main(["--export", form, str(style), "--out", str(source)]) == 0
    before = {file: (file.read_bytes(), file.stat().st_ino) for file in source.iterdir()}
    assert main(["--export", form, str(source), "--out", str(source)]) == 2
    assert "holds the LoRA itself; give another folder" in capsys.readouterr().err
    assert {file: (file.read_bytes(), file.stat().st_ino) for file in source.iterdir()} == before


def test_an_unknown_format_is_reported_with_the_known_ones(
    style: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--export", "onnx", str(style), "--out", "o"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert all(form in error for form in LoraFormat)
