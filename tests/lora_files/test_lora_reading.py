"""LoRA files of other trainers: read with the right deltas, or rejected in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from adapters.lora_files.files import decode_lora, read_lora, write_lora
from adapters.lora_files.lora_formats import (
    InvalidLoraFile,
    LayerWeights,
    LoraFormat,
    LoraWeights,
)
from tests.lora_files import lora_writers as writers
from tests.lora_files.lora_writers import TEXT_LAYERS, UNET_LAYERS, Pairs, delta, random_pairs

TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
STEM = "lora_unet_" + TO_Q.replace(".", "_")
ATTENTION_ONLY = {path: shape for path, shape in UNET_LAYERS.items() if ".to_" in path}
OLD_TEXT = {path: shape for path, shape in TEXT_LAYERS.items() if "self_attn" in path}


def read(tmp_path: Path, tensors: writers.Tensors, **metadata: str) -> LoraWeights:
    path = tmp_path / "lora.safetensors"
    own = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    safetensors.torch.save_file(own, path, metadata or None)
    return read_lora(path)[0]


def deltas_of(weights: LoraWeights) -> dict[str, torch.Tensor]:
    def added(layer: LayerWeights) -> torch.Tensor:
        return layer.alpha / layer.rank * delta(layer.up.float(), layer.down.float())

    return {path: added(layer) for (_, path), layer in weights.items()}


def check(weights: LoraWeights, pairs: Pairs, scale: float = 1.0) -> None:
    """Check that every layer is read and has the written delta."""
    found = deltas_of(weights)
    assert found.keys() == pairs.keys()
    for path, (up, down) in pairs.items():
        torch.testing.assert_close(found[path], scale * delta(up, down), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", LoraFormat)
def test_sd_scripts_with_conv_dim_keeps_its_deltas_in_every_format(
    tmp_path: Path, form: LoraFormat
) -> None:
    pairs = random_pairs({**UNET_LAYERS, **TEXT_LAYERS}, rank=8, conv_rank=2)
    weights = read(tmp_path, writers.sd_scripts(pairs, alpha=4.0, conv_alpha=1.0))
    check(weights, pairs, scale=0.5)
    write_lora(weights, {}, form, tmp_path / "out", "style")
    check(read_lora(tmp_path / "out")[0], pairs, scale=0.5)


def test_locon_with_a_tucker_core_is_read_as_the_equal_lora(tmp_path: Path) -> None:
    pairs = random_pairs(UNET_LAYERS, rank=4)
    tensors, with_core = writers.lycoris_tucker(pairs, alpha=4.0)
    found = deltas_of(read(tmp_path, tensors))
    assert with_core
    for path, (up, down) in pairs.items():
        wanted = with_core.get(path, delta(up, down))
        torch.testing.assert_close(found[path], wanted, rtol=1e-3, atol=1e-3)


def test_files_of_diffusers_training_examples_are_read(tmp_path: Path) -> None:
    pairs = random_pairs({**UNET_LAYERS, **TEXT_LAYERS}, rank=4)
    check(read(tmp_path, writers.diffusers_examples(pairs)), pairs)


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_attention_processors_of_older_diffusers_are_read(tmp_path: Path, prefix: str) -> None:
    pairs = random_pairs({**ATTENTION_ONLY, **OLD_TEXT}, rank=4)
    check(read(tmp_path, writers.diffusers_attention_processors(pairs, prefix)), pairs)


def test_a_peft_folder_is_read_with_its_scale(tmp_path: Path) -> None:
    pairs = random_pairs(UNET_LAYERS, rank=4)
    safetensors.torch.save_file(writers.peft_folder(pairs), tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    check(read_lora(tmp_path)[0], pairs, scale=4.0)


# --- DoRA whose magnitudes are per input -------------------------------------------------


def test_magnitudes_per_input_stay_per_input_in_square_layers(tmp_path: Path) -> None:
    pairs = random_pairs(UNET_LAYERS, rank=4)
    base = {
        path: torch.randn(outputs, inputs, *([] if kernel is None else [kernel, kernel]))
        for path, (outputs, inputs, kernel) in UNET_LAYERS.items()
    }
    tensors = writers.onetrainer_dora(base, pairs, alpha=4.0)
    weights = read(tmp_path, tensors)
    assert all(layer.per_input for layer in weights.values())
    check(weights, pairs)
    (file,) = write_lora(weights, {}, LoraFormat.KOHYA, tmp_path / "kohya", "style")
    written = safetensors.torch.load_file(file)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("form", [LoraFormat.DIFFUSERS, LoraFormat.PEFT])
def test_magnitudes_per_input_are_rejected_where_a_format_means_outputs(
    tmp_path: Path, form: LoraFormat
) -> None:
    pairs = random_pairs({TO_Q: (8, 8, None)}, rank=2)
    weights = read(tmp_path, writers.onetrainer_dora({TO_Q: torch.randn(8, 8)}, pairs, 2.0))
    with pytest.raises(InvalidLoraFile, match="per input"):
        write_lora(weights, {}, form, tmp_path / "out", "style")
    assert not (tmp_path / "out").exists()


# --- other models ------------------------------------------------------------------------


def pair(stem: str, inputs: int) -> writers.Tensors:
    return {
        f"{stem}.lora_down.weight": torch.zeros(2, inputs),
        f"{stem}.lora_up.weight": torch.zeros(8, 2),
    }


def peft_pair(module: str, inputs: int) -> writers.Tensors:
    return {
        f"{module}.lora_A.weight": torch.zeros(2, inputs),
        f"{module}.lora_B.weight": torch.zeros(8, 2),
    }


TO_K = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
IN_4 = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
IN_1 = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
DIFFUSERS_XL = "unet.down_blocks.2.attentions.0.transformer_blocks.9.attn1.to_q"


@pytest.mark.parametrize(
    ("kind", "tensors", "metadata"),
    [
        ("SDXL", pair(IN_4, 640), {}),
        ("SDXL", pair(TO_K, 2048), {}),
        ("SDXL", peft_pair(DIFFUSERS_XL, 1280), {}),
        ("SDXL", pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", 1280), {}),
        ("SDXL", pair(STEM, 8), {"ss_base_model_version": "sdxl_base_v1-0"}),
        ("Diffusion 2", pair(STEM, 8), {"ss_v2": "True"}),
        ("Diffusion 2", pair(TO_K, 1024), {}),
        ("Diffusion 2", peft_pair("text_encoder.text_model.encoder.layers.3.mlp.fc1", 1024), {}),
        ("Diffusion 3", peft_pair("transformer.transformer_blocks.0.attn.to_q", 1536), {}),
        ("Flux", pair("lora_unet_double_blocks_0_img_attn_qkv", 3072), {}),
        ("Flux", peft_pair("transformer.single_transformer_blocks.0.attn.to_q", 3072), {}),
        ("block names of original checkpoints", pair(IN_1, 320), {}),
        ("checkpoint, not a LoRA", {"model.diffusion_model.out.2.weight": torch.ones(1)}, {}),
        ("textual inversion", {"emb_params": torch.zeros(2, 768)}, {}),
        ("LoHa", {f"{STEM}.hada_w1_a": torch.zeros(2, 2)}, {}),
        ("LoKr", {f"{STEM}.lokr_w1": torch.zeros(2, 2)}, {}),
        ("embeddings of OneTrainer", {"bundle_emb.a.clip_l": torch.ones(2), **pair(STEM, 8)}, {}),
    ],
)
def test_a_file_of_another_kind_is_rejected_with_its_kind(
    tmp_path: Path, kind: str, tensors: writers.Tensors, metadata: dict[str, str]
) -> None:
    with pytest.raises(InvalidLoraFile, match=kind) as rejected:
        read(tmp_path, tensors, **metadata)
    assert "\n" not in str(rejected.value)


# --- what no training gives --------------------------------------------------------------

DOWN, UP = torch.ones(2, 8), torch.ones(8, 2)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"lora_down.weight": DOWN * torch.nan, "lora_up.weight": UP}, "NaN or infinity"),
        ({"lora_down.weight": DOWN, "lora_up.weight": UP * torch.inf}, "NaN or infinity"),
        ({"lora_down.weight": DOWN, "lora_up.weight": torch.ones(8, 3)}, "do not fit"),
        ({"lora_down.weight": DOWN, "lora_up.weight": torch.ones(8, 2, 1, 1)}, "do not fit"),
        ({"lora_down.weight": torch.ones(0, 8), "lora_up.weight": torch.ones(8, 0)}, "rank 0"),
        ({"lora_down.weight": DOWN.to(torch.int8), "lora_up.weight": UP}, "int8"),
        (
            {"lora_down.weight": DOWN, "lora_up.weight": UP, "alpha": torch.tensor(torch.nan)},
            "NaN or infinity",
        ),
        (
            {"lora_down.weight": DOWN, "lora_up.weight": UP, "alpha": torch.ones(2)},
            "alpha has 2 values",
        ),
        (
            {"lora_down.weight": DOWN, "lora_up.weight": UP, "dora_scale": torch.ones(5, 1)},
            "neither one value per output",
        ),
        ({"lora_up.weight": UP}, "lacks its lora_down.weight"),
        ({"lora_down.weight": DOWN}, "lacks its lora_up.weight"),
        ({"wrong": DOWN}, "is not part of a LoRA"),
    ],
)
def test_a_broken_layer_is_rejected_by_name(
    tmp_path: Path, parts: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(InvalidLoraFile, match=message) as rejected:
        read(tmp_path, {f"{STEM}.{part}": tensor for part, tensor in parts.items()})
    assert "attn1" in str(rejected.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_Wrong.lora_up.weight", "is not a layer of Stable Diffusion 1.5"),
        ("lora_unet_mid_block_nothing.lora_up.weight", "is not a layer of Stable Diffusion 1.5"),
        ("vae.decoder.conv_in.weight", "neither to unet nor to text_encoder"),
        ("unet.conv_in.weight", "not part of a LoRA"),
    ],
)
def test_an_unknown_key_is_named(tmp_path: Path, key: str, message: str) -> None:
    with pytest.raises(InvalidLoraFile, match=message):
        read(tmp_path, {key: torch.zeros(1, 1)})


def test_float8_is_read_exactly(tmp_path: Path) -> None:
    up, down = UP.to(torch.float8_e4m3fn), (DOWN * 0.25).to(torch.float8_e4m3fn)
    weights = read(tmp_path, {f"{STEM}.lora_up.weight": up, f"{STEM}.lora_down.weight": down})
    assert torch.equal(deltas_of(weights)[TO_Q], torch.full((8, 8), 0.5))


# --- files that are no safetensors -------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 archive of torch.save", "a pickle"),
        (b"\x80\x02 older torch.save", "a pickle"),
        (b"\n<!DOCTYPE html><title>Log in</title>", "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\x1f\x8b\x08 compressed", "gzip"),
        (b'{"error": "not found"}', "a JSON text"),
        (b"anything else, and long enough to be read as a header", "damaged or not in"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidLoraFile, match=message) as rejected:
        read_lora(path)
    assert "give a LoRA of Stable Diffusion 1.5" in str(rejected.value)


def test_a_missing_path_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InvalidLoraFile, match="no such file or folder"):
        read_lora(tmp_path / "missing.safetensors")


def test_the_only_safetensors_file_of_a_folder_is_read(tmp_path: Path) -> None:
    read(tmp_path, pair(STEM, 8))
    assert read_lora(tmp_path)[0].keys() == {("unet", TO_Q)}
    safetensors.torch.save_file(pair(STEM, 8), tmp_path / "other.safetensors")
    with pytest.raises(InvalidLoraFile, match=r"lora\.safetensors, other\.safetensors"):
        read_lora(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no .safetensors file"),
        (["pytorch_lora_weights.bin"], "pytorch_lora_weights.bin is a pickle"),
        (["adapter_config.json", "adapter_model.bin"], "adapter_model.bin is a pickle"),
        (["adapter_config.json"], "has no adapter_model.safetensors"),
    ],
)
def test_a_folder_without_safetensors_is_reported(
    tmp_path: Path, names: list[str], message: str
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(InvalidLoraFile, match=message):
        read_lora(tmp_path)


def test_a_file_without_tensors_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InvalidLoraFile, match="holds no tensors"):
        read(tmp_path, {})


def test_an_invalid_regular_expression_is_rejected(tmp_path: Path) -> None:
    tensors = {f"unet.{TO_Q}.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
    config = json.dumps({"unet.alpha_pattern": {"(": 1}})
    with pytest.raises(InvalidLoraFile, match="unterminated subpattern"):
        read(tmp_path, tensors, lora_adapter_metadata=config)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a JSON object"),
        ("null", "is not a JSON object"),
        ('{"unet.alpha_pattern": [1]}', "alpha_pattern or lora_alpha"),
        ('{"unet.alpha_pattern": {".*": null}}', "alpha_pattern or lora_alpha"),
        ('{"unet.alpha_pattern": {"(a+)+b": 1}}', "too many repeats"),
        ('{"unet.alpha_pattern": {".*.*.*b": 1}}', "too many repeats"),
        ('{"unet.lora_alpha": null}', "alpha_pattern or lora_alpha"),
        ('{"unet.lora_alpha": "much"}', "alpha_pattern or lora_alpha"),
        (f'{{"unet.lora_alpha": 1{"0" * 400}}}', "alpha_pattern or lora_alpha"),
    ],
    ids=lambda value: value[:40],
)
def test_a_configuration_of_unexpected_structure_is_rejected(config: str, complaint: str) -> None:
    tensors = {f"unet.{TO_Q}.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
    data = safetensors.torch.save(tensors, {"lora_adapter_metadata": config})
    with pytest.raises(InvalidLoraFile, match=complaint):
        decode_lora(data)


@pytest.mark.parametrize("config", [b"[]", b"{", b"\xff", b'{"alpha_pattern": 3}'])
def test_a_peft_configuration_of_unexpected_structure_is_rejected(
    tmp_path: Path, config: bytes
) -> None:
    tensors = {f"base_model.model.{TO_Q}.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
    safetensors.torch.save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes(config)
    with pytest.raises(InvalidLoraFile, match="give a LoRA of Stable Diffusion"):
        read_lora(tmp_path)


def test_a_layer_under_two_spellings_is_rejected(tmp_path: Path) -> None:
    spellings = [("lora_A", "lora_B"), ("lora.down", "lora.up")]
    keys = [f"unet.{TO_Q}.{part}.weight" for parts in spellings for part in parts]
    with pytest.raises(InvalidLoraFile, match=r"is the second lora_(down|up).weight of its layer"):
        read(tmp_path, {key: torch.ones(2, 2) for key in keys})
