from __future__ import annotations

import json
import pickle
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from adapters.diffusion.base.fingerprint import fingerprint_of
from adapters.diffusion.base.model import BaseModel, load_base
from adapters.diffusion.base.names import BaseModelInvalid, check_name
from tests.diffusion.single_file import write_single_file
from tests.services.ports import free_ports

pytestmark = pytest.mark.integration

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"
VAE = Path("vae") / "diffusion_pytorch_model.safetensors"
TEXT = Path("text_encoder") / "model.safetensors"


@pytest.fixture
def copy(small_base_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small base to damage."""
    return Path(shutil.copytree(small_base_folder, tmp_path / "base"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rejection(name: Path | str) -> str:
    with pytest.raises(BaseModelInvalid) as rejected:
        load_base(str(name))
    message = str(rejected.value)
    assert "\n" not in message
    assert message.startswith(f"base model {str(name)!r}: ")
    return message


def test_a_folder_is_loaded_frozen_with_its_prediction_type(base: BaseModel) -> None:
    assert (base.name, base.native_resolution, base.prediction_type) == (
        "small_base",
        128,
        "epsilon",
    )
    for part in (base.unet, base.vae, base.text_encoder):
        assert not part.training
        assert not any(weight.requires_grad for weight in part.parameters())
        assert {weight.dtype for weight in part.parameters()} == {torch.float32}


def test_only_models_with_the_shapes_of_sd15_are_taken_for_it() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    base = load_base("assets/small_base")
    assert not base.is_sd15
    assert replace(base, unet=unet).is_sd15


def test_a_single_file_is_the_same_model(
    base: BaseModel, small_base_folder: Path, tmp_path: Path
) -> None:
    path = write_single_file(base, tmp_path / "model.safetensors")
    loaded = load_base(str(path), config_folder=small_base_folder)
    assert loaded.fingerprint == base.fingerprint
    assert loaded.native_resolution == base.native_resolution
    weights = loaded.unet.state_dict()
    assert all(torch.equal(weights[name], own) for name, own in base.unet.state_dict().items())


@pytest.mark.parametrize("file", [UNET, VAE, TEXT, None])
def test_the_fingerprint_covers_every_part_and_the_noise_schedule(
    base: BaseModel, copy: Path, file: Path | None
) -> None:
    if file is None:
        edit_json(copy / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    else:
        edit(copy / file, lambda tensors: tensors[max(tensors)].view(-1)[0].add_(1))
    loaded = load_base(str(copy))
    assert loaded.fingerprint != base.fingerprint
    assert loaded.prediction_type == ("epsilon" if file else "v_prediction")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pkl"])
def test_a_pickle_is_rejected_unread(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Path("anything")))
    assert "is a pickle" in rejection(path)


def test_code_in_a_folder_is_not_run(copy: Path) -> None:
    (copy / "unet" / "mine.py").write_text("raise SystemExit('was run')")
    edit_json(copy / "model_index.json", unet=["mine", "MyUNet"])
    assert "of MyUNet" in rejection(copy)


@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.rename(path.with_suffix(".bin")), "has only pickles in {part}/"),
        (Path.unlink, "has no .safetensors in {part}/"),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), "cannot be loaded"),
        (lambda path: edit(path, lambda tensors: tensors.pop(max(tensors))), "give a complete"),
    ],
)
def test_a_folder_with_a_damaged_part_is_rejected(
    copy: Path, file: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(copy / file)
    assert message.format(part=file.parts[0]) in rejection(copy)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
        (
            "model_index.json",
            {"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["transformers", "X"]},
            "is a StableDiffusionXLPipeline",
        ),
        ("unet/config.json", {"in_channels": 9}, "give a"),
        ("text_encoder/config.json", {"intermediate_size": 64}, "size mismatch"),
        ("model_index.json", {"scheduler": None}, "cannot be loaded"),
        ("model_index.json", {"vae": "AutoencoderKL"}, "UNet2DConditionModel, None"),
    ],
)
def test_another_model_is_rejected(
    copy: Path, file: str, values: dict[str, object], message: str
) -> None:
    edit_json(copy / file, **values)
    assert message in rejection(copy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cross_attention_dim": 1024}, "is Stable Diffusion 2; give a Stable Diffusion 1.5"),
        ({"transformer_layers_per_block": 2}, "transformer_blocks.1"),
    ],
)
def test_a_model_whose_styles_are_not_of_sd15_is_rejected(
    base: BaseModel, copy: Path, values: dict[str, int], message: str
) -> None:
    unet = UNet2DConditionModel.from_config({**base.unet.config, **values})
    unet.save_pretrained(copy / "unet")
    width = unet.config.cross_attention_dim
    text_encoder = CLIPTextModel(
        CLIPTextConfig.from_dict({**base.text_encoder.config.to_dict(), "hidden_size": width})
    )
    text_encoder.save_pretrained(copy / "text_encoder")
    assert message in rejection(copy)


@pytest.mark.parametrize("length", [None, 100_000])
def test_a_single_file_of_another_kind_or_truncated_is_rejected(
    base: BaseModel, small_base_folder: Path, tmp_path: Path, length: int | None
) -> None:
    path = tmp_path / "other.safetensors"
    if length is None:
        safetensors.torch.save_file({"weight": torch.ones(3)}, path)
    else:
        path.write_bytes(write_single_file(base, path).read_bytes()[:length])
    with pytest.raises(BaseModelInvalid, match="cannot be read as a Stable Diffusion"):
        load_base(str(path), config_folder=small_base_folder)


def test_a_folder_or_a_file_of_another_kind_is_rejected(tmp_path: Path) -> None:
    assert "no model_index.json" in rejection(tmp_path)
    for damaged in ("{", "[]"):
        (tmp_path / "model_index.json").write_text(damaged)
        rejection(tmp_path)
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    assert "is not a .safetensors file" in rejection(path)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["someone/something", "something"])
def test_an_unknown_name_is_rejected_without_the_hub_clients_advice(name: str) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert "not a folder" in rejection(name)
    assert [str(warning.message) for warning in shown] == []


@pytest.mark.parametrize("hub", ["offline", "silent"])
def test_a_model_in_the_hubs_cache_is_loaded_without_the_hub(
    base: BaseModel,
    small_base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    hub: str,
) -> None:
    monkeypatch.setattr("adapters.diffusion.base.names.HUB_SECONDS", 60)
    over = threading.Event()
    if hub == "offline":
        request.getfixturevalue("offline")
    else:
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: over.wait(60))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model, commit = tmp_path / "models--someone--base", "0" * 40
    shutil.copytree(small_base_folder, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    began = time.monotonic()
    loaded = load_base("someone/base")
    assert time.monotonic() - began < 30
    over.set()
    assert (loaded.name, loaded.fingerprint) == ("someone/base", base.fingerprint)


def test_an_unreachable_hub_is_reported_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    began = time.monotonic()
    assert "the hub cannot be reached; check the name" in rejection("no-such-owner/no-such-model")
    assert time.monotonic() - began < 10


def test_a_hub_that_cannot_be_resolved_is_reported_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = threading.Event()
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: over.wait(60))
    monkeypatch.setattr("adapters.diffusion.base.names.HUB_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(BaseModelInvalid, match="the hub cannot be reached"):
        check_name("no-such-owner/no-such-model")
    assert time.monotonic() - began < 10
    over.set()


@pytest.mark.parametrize("cached", [None, "model_index.json"])
def test_a_slow_hub_is_waited_for_if_a_model_is_not_complete_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, cached: str | None
) -> None:
    def look_in_cache(_name: str, file: str) -> str | None:
        return file if file == cached else None

    def download(*_: object, local_files_only: bool, **__: object) -> str:
        assert not local_files_only
        raise OSError("downloading")

    monkeypatch.setattr("adapters.diffusion.base.names.UNNEEDED_HUB_SECONDS", 0.0)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: time.sleep(0.1))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look_in_cache)
    monkeypatch.setattr("adapters.diffusion.base.pipeline_files.snapshot_download", download)
    assert "(downloading)" in rejection("someone/base")


@pytest.mark.parametrize(
    "name",
    ["/models/base", "./no/such/folder", "~/base", "no/such/folder", "model.safetensors", "a b"],
)
def test_a_missing_path_is_not_looked_up_on_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_arguments: object, **_options: object) -> None:
        raise AssertionError("looked up on the hub")

    monkeypatch.setattr("adapters.diffusion.base.pipeline_files.snapshot_download", download)
    assert rejection(name).endswith("a file or a hub name; check the path")


def test_a_folder_in_shards_has_the_same_fingerprint(base: BaseModel, copy: Path) -> None:
    (copy / UNET).unlink()
    base.unet.save_pretrained(copy / "unet", max_shard_size="1MB")
    assert len(list((copy / "unet").glob("*.safetensors"))) > 1
    assert load_base(str(copy)).fingerprint == base.fingerprint


def test_the_text_encoder_of_any_version_of_transformers_is_the_same(
    base: BaseModel, copy: Path
) -> None:
    def as_in_version_5(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.startswith("text_model.")]:
            tensors[key.removeprefix("text_model.")] = tensors.pop(key)

    def as_in_old_versions(tensors: dict[str, torch.Tensor]) -> None:
        as_in_version_5(tensors)
        for key in list(tensors):
            tensors[f"text_model.{key}"] = tensors.pop(key)
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]

    for change in (as_in_version_5, as_in_old_versions):
        edit(copy / TEXT, change)
        assert load_base(str(copy)).fingerprint == base.fingerprint


def test_the_fingerprint_is_the_same_with_transformers_4(base: BaseModel) -> None:
    class TextEncoderOfVersion4(torch.nn.Module):
        """Names all its weights ``text_model.…``."""

        def __init__(self) -> None:
            super().__init__()
            self.text_model = base.text_encoder

    parts = {
        "unet": base.unet,
        "vae": base.vae,
        "text_encoder": base.text_encoder,
        "scheduler": base.noise_schedule,
    }
    other = {**parts, "text_encoder": TextEncoderOfVersion4()}
    assert fingerprint_of(other) == fingerprint_of(parts)
