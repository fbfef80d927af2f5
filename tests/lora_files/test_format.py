"""The style in every program: its keys, its numbers and its conversions. See docs/format.md."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from adapters.common.tensor_file import decode as read_file
from adapters.diffusion.base.model import BaseModel, load_base
from adapters.diffusion.lora_targets import ATTENTION
from adapters.diffusion.style_weights import weights_for_file
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from adapters.lora_files.diffusers_format import from_diffusers, lora_config
from adapters.lora_files.files import read_lora, write_lora
from adapters.lora_files.kohya_format import to_kohya
from adapters.lora_files.lora_formats import LayerWeights, LoraFormat
from adapters.lora_files.peft_format import from_peft
from benchmarks.full_size import pipeline_of
from domain.image import TrainingImage
from domain.parameters import LoraTargets
from tests.diffusion.runs import lora_on, plan_of, predict, shown, weights_of
from tests.diffusion.single_file import unet_key, write_single_file
from tests.lora_files.reference_loaders import (
    UNET,
    a1111_decomposed,
    a1111_metadata,
    a1111_module,
    a1111_version,
    comfy_decomposed,
    comfy_names,
    comfy_patched,
    lycoris_decomposed,
)

pytestmark = pytest.mark.integration

OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {},
    "conv": {"lora_targets": "attention+ff+conv", "use_rslora": True, "alpha": 3.0},
    "dora": {"use_dora": True, "lora_targets": "attention+ff+conv"},
}


@pytest.fixture(scope="module")
def styles(
    base: BaseModel, images: tuple[TrainingImage, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, torch.Tensor]]:
    """For each set of options, the file and the trained UNet's prediction."""
    folder = tmp_path_factory.mktemp("styles")
    trained = {}
    for name, options in OPTIONS.items():
        plan = plan_of(images[:2], trigger_word="inkwash", **options)
        with DiffusionTrainer(base, decode).open(plan, None) as session:
            for _ in range(4):
                session.advance()
            weights = weights_of(session)
            weights.copy_(weights.half().float())  # the file's precision
            path = folder / f"{name}.safetensors"
            path.write_bytes(session.weights())
            with shown(session):
                trained[name] = path, predict(base.unet)
    return trained


@pytest.fixture
def pipeline(base: BaseModel) -> Iterator[StableDiffusionPipeline]:
    pipeline = pipeline_of(base)
    yield pipeline
    pipeline.unload_lora_weights()


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal except for rounding; the style's own effect is a hundred times larger."""
    return torch.allclose(found, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_diffusers_loads_the_file_into_a_pipeline_or_a_unet(
    pipeline: StableDiffusionPipeline, styles: dict[str, tuple[Path, torch.Tensor]], name: str
) -> None:
    path, trained = styles[name]
    assert (predict(pipeline.unet) - trained).abs().max() > 2e-3
    pipeline.load_lora_weights(path)
    assert close(predict(pipeline.unet), trained)
    pipeline.unload_lora_weights()
    state, alphas, metadata = pipeline.lora_state_dict(path, return_lora_metadata=True)
    pipeline.unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas, metadata=metadata)
    assert close(predict(pipeline.unet), trained)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("form", LoraFormat)
def test_a_converted_style_loads_in_its_library_and_predicts_the_same(
    pipeline: StableDiffusionPipeline,
    styles: dict[str, tuple[Path, torch.Tensor]],
    tmp_path: Path,
    form: LoraFormat,
    name: str,
) -> None:
    from peft import PeftModel

    path, trained = styles[name]
    files = write_lora(*read_lora(path), form, tmp_path, "style")
    if form is LoraFormat.PEFT:
        assert [file.name for file in files] == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        model = PeftModel.from_pretrained(pipeline.unet, tmp_path)
        found = predict(model)
        model.unload()
        assert close(found, trained)
    elif form is LoraFormat.DIFFUSERS:
        pipeline.load_lora_weights(tmp_path)
        assert close(predict(pipeline.unet), trained)
        pipeline.unload_lora_weights()
        # Without use_safetensors diffusers 0.42 does not look at the metadata, and so at alpha.
        pipeline.unet.load_lora_adapter(files[0], prefix="unet", use_safetensors=True)
        assert close(predict(pipeline.unet), trained)
    else:
        pipeline.load_lora_weights(files[0])
        # diffusers 0.42 leaves the magnitudes out of kohya's form, and says so.
        assert close(predict(pipeline.unet), trained) == (name != "dora")


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("form", LoraFormat)
def test_converting_to_a_format_and_back_gives_the_same_file(
    styles: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path, form: LoraFormat, name: str
) -> None:
    (kohya,) = write_lora(*read_lora(styles[name][0]), LoraFormat.KOHYA, tmp_path, "style")
    write_lora(*read_lora(kohya), form, tmp_path / "there", "style")
    there = read_lora(tmp_path / "there")
    (back,) = write_lora(*there, LoraFormat.KOHYA, tmp_path / "back", "style")
    assert back.read_bytes() == kohya.read_bytes()
    if name != "dora":
        assert kohya.read_bytes() == styles[name][0].read_bytes()


def test_a_file_written_by_diffusers_is_read(
    base: BaseModel, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """Files written by the library, without our metadata and in its key order."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import get_peft_model_state_dict

    config = LoraConfig(r=4, lora_alpha=4, target_modules=[*ATTENTION])
    unet = inject_adapter_in_model(config, copy.deepcopy(base.unet), adapter_name="style")
    for name, weight in unet.named_parameters():
        if "lora_" in name:
            weight.data += 0.02
    wanted = predict(unet)
    layers = get_peft_model_state_dict(unet, adapter_name="style")
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    (kohya,) = write_lora(*read_lora(tmp_path), LoraFormat.KOHYA, tmp_path / "kohya", "style")
    pipeline.load_lora_weights(kohya)
    assert close(predict(pipeline.unet), wanted)


TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
Q_PROJ = "encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("model", "name", "pattern", "alpha"),
    [
        ("unet", TO_Q, TO_Q, 1),
        ("unet", TO_Q, "to_q", 1),
        ("unet", TO_Q, "attn[12].to_(q|k)", 1),
        ("unet", TO_Q, "q", 4),
        ("unet", TO_Q, "to_k", 4),
        ("text_encoder", f"text_model.{Q_PROJ}", f"text_model.{Q_PROJ}", 1),
        ("text_encoder", f"text_model.{Q_PROJ}", Q_PROJ, 1),
        ("text_encoder", f"text_model.{Q_PROJ}", f"^{Q_PROJ}", 1),
        ("text_encoder", Q_PROJ, Q_PROJ, 1),
    ],
)
def test_a_layers_alpha_is_resolved_like_in_peft(
    model: str, name: str, pattern: str, alpha: float
) -> None:
    config = {"lora_alpha": 4, "alpha_pattern": {"other": 2, pattern: 1}}
    tensors = {"lora_A.weight": torch.zeros(4, 3), "lora_B.weight": torch.zeros(3, 4)}
    named = {f"base_model.model.{name}.{part}": t for part, t in tensors.items()}
    (layer,) = from_peft(model, named, config).values()
    assert layer.alpha == alpha
    metadata = json.dumps({f"{model}.{setting}": value for setting, value in config.items()})
    named = {f"{model}.{name}.{part}": t for part, t in tensors.items()}
    (layer,) = from_diffusers(named, {"lora_adapter_metadata": metadata}).values()
    assert layer.alpha == alpha


def test_layers_of_another_rank_or_alpha_are_in_pefts_patterns() -> None:
    shapes = {"a.to_q": (4, 2.0), "a.to_k": (4, 2.0), "a.to_v": (8, 2.0), "a.to_out.0": (4, 3.0)}
    style = {
        ("unet", path): LayerWeights(torch.zeros(rank, 6), torch.zeros(6, rank), alpha)
        for path, (rank, alpha) in shapes.items()
    }
    config = lora_config(style, "unet")
    assert (config["r"], config["lora_alpha"]) == (4, 2.0)
    assert config["rank_pattern"] == {"a.to_v": 8}
    assert config["alpha_pattern"] == {"a.to_out.0": 3.0}


# --- ComfyUI -----------------------------------------------------------------------------


def ldm_names(unet: UNet2DConditionModel) -> dict[str, str]:
    layers = unet.config.layers_per_block
    return {name: unet_key(name, layers) for name in unet.state_dict()}


@pytest.mark.parametrize("name", ["attention", "conv"])
def test_comfyui_patches_the_original_checkpoint_to_the_trained_model(
    base: BaseModel,
    styles: dict[str, tuple[Path, torch.Tensor]],
    small_base_folder: Path,
    tmp_path: Path,
    name: str,
) -> None:
    path, trained = styles[name]
    checkpoint = write_single_file(base, tmp_path / "base.safetensors")
    names = comfy_names(ldm_names(base.unet), base.text_encoder.config.num_hidden_layers)
    weights = safetensors.torch.load_file(checkpoint)
    patched = comfy_patched(weights, read_file(path.read_bytes())[0], names)
    safetensors.torch.save_file(dict(patched), checkpoint)
    model = load_base(str(checkpoint), config_folder=small_base_folder)
    assert close(predict(model.unet), trained)


def test_each_program_loads_dora_as_documented(
    base: BaseModel, styles: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path
) -> None:
    """LyCORIS's rule is the trained layer; ComfyUI's is near it; AUTOMATIC1111's is another."""
    (path,) = write_lora(*read_lora(styles["dora"][0]), LoraFormat.KOHYA, tmp_path, "style")
    tensors, _ = read_file(path.read_bytes())
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    stem = "lora_unet_" + layer.replace(".", "_")
    weight = base.unet.get_submodule(layer).weight.detach()
    up, down = tensors[f"{stem}.lora_up.weight"], tensors[f"{stem}.lora_down.weight"]
    total = weight + tensors[f"{stem}.alpha"] / down.shape[0] * up.float() @ down.float()
    magnitudes = tensors[f"{stem}.dora_scale"].float()
    trained = total * (magnitudes[:, 0] / total.norm(dim=1))[:, None]
    torch.testing.assert_close(lycoris_decomposed(total, magnitudes), trained)
    size = (trained - weight).norm()
    assert 0 < (comfy_decomposed(weight, total, magnitudes) - trained).norm() < 0.5 * size
    assert (a1111_decomposed(total, magnitudes) - trained).norm() > size


@pytest.mark.parametrize("name", OPTIONS)
def test_diffusers_format_loads_partly_in_comfyui_and_not_in_automatic1111(
    base: BaseModel, styles: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path, name: str
) -> None:
    path = styles[name][0]  # DoRA's is stored in it
    if name != "dora":
        (path,) = write_lora(*read_lora(path), LoraFormat.DIFFUSERS, tmp_path, "style")
    tensors, _ = read_file(path.read_bytes())
    layers = {key.rpartition(".lora_")[0] for key in tensors}
    found = layers & comfy_names(ldm_names(base.unet), layers=0).keys()
    assert found == {layer for layer in layers if ".to_" not in layer}
    assert found < layers
    assert {a1111_module(key.partition(".")[0]) for key in tensors} == {"unet"}


# --- AUTOMATIC1111 -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size() -> UNet2DConditionModel:
    """Stable Diffusion 1.5's UNet without its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64,
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
        )


@pytest.mark.parametrize("targets", LoraTargets)
def test_automatic1111_finds_a_module_for_every_key_of_the_full_size(
    base: BaseModel, full_size: UNet2DConditionModel, targets: LoraTargets
) -> None:
    with lora_on(base, full_size, rank=8, lora_targets=targets) as lora:
        style = lora.new_style(0, 1)
    tensors, layers = to_kohya(weights_for_file(style)), len(style.unet)
    modules = {
        "diffusion_model_" + ldm.removesuffix(".weight").replace(".", "_"): name
        for name, ldm in ldm_names(full_size).items()
        if name.endswith(".weight")
    }
    found = {stem: modules[a1111_module(stem)] for stem in {key.split(".")[0] for key in tensors}}
    assert len(set(found.values())) == layers
    for stem, name in found.items():
        assert stem == "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        shape = full_size.get_parameter(name).shape
        assert tensors[f"{stem}.lora_down.weight"].shape == (8, *shape[1:])
        assert tensors[f"{stem}.lora_up.weight"].shape == (shape[0], 8, *[1] * (len(shape) - 2))


def test_comfyui_knows_every_key_of_the_full_size(
    base: BaseModel, full_size: UNet2DConditionModel
) -> None:
    targets = LoraTargets.CONVOLUTIONS
    with lora_on(base, full_size, rank=8, lora_targets=targets) as lora:
        stems = {key.split(".")[0] for key in to_kohya(weights_for_file(lora.new_style(0, 1)))}
    names = comfy_names(ldm_names(full_size), layers=12)
    assert stems <= names.keys()
    assert all(names[stem].startswith(UNET) for stem in stems)


@pytest.mark.parametrize("name", OPTIONS)
def test_automatic1111_shows_the_styles_name_version_tags_sizes_and_images(
    styles: dict[str, tuple[Path, torch.Tensor]], name: str
) -> None:
    data = styles[name][0].read_bytes()
    metadata = a1111_metadata(data)
    assert metadata["ss_output_name"] == "style_7"
    assert a1111_version(metadata) == "SD1"
    (tags,) = metadata["ss_tag_frequency"].values()
    assert tags["inkwash"] == 2
    buckets = metadata["ss_bucket_info"]["buckets"].values()
    assert [(b["resolution"], int(b["count"])) for b in buckets] == [([64, 64], 2)]
    assert metadata["ss_dataset_dirs"] == {"style_7": {"n_repeats": 1, "img_count": 2}}
    # It shows this hash, or takes one over the same bytes.
    end = 8 + int.from_bytes(data[:8], "little")
    assert metadata["sshs_model_hash"] == hashlib.sha256(data[end:]).hexdigest()


def test_peft_config_names_the_base_and_is_for_inference(tmp_path: Path) -> None:
    layer = LayerWeights(torch.zeros(2, 8), torch.zeros(8, 2), 3.0, None)
    metadata = {"ss_sd_model_name": "some base"}
    written, _ = write_lora({(UNET, TO_Q): layer}, metadata, LoraFormat.PEFT, tmp_path, "style")
    config = json.loads(written.read_text(encoding="utf-8"))
    wanted = {"base_model_name_or_path": "some base", "inference_mode": True, "peft_type": "LORA"}
    assert config.items() >= wanted.items()
    assert (config["r"], config["lora_alpha"]) == (2, 3.0)
    # PEFT 0.7 raises TypeError for any other field.
    oldest = {"peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern"}
    assert config.keys() <= oldest | {"base_model_name_or_path", "inference_mode"}
