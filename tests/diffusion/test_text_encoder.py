"""Training the text encoder too: it learns, resumes, is restored, and loads."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from adapters.common.tensor_file import decode as read_file
from adapters.diffusion.base.model import BaseModel, load_base
from adapters.diffusion.data.text import encode_captions
from adapters.diffusion.session import DiffusionSession
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from adapters.lora_files.files import read_lora, write_lora
from adapters.lora_files.lora_formats import LoraFormat
from application.ports import TrainingSession
from benchmarks.full_size import pipeline_of
from domain.image import TrainingImage
from tests.diffusion.runs import drive, plan_of, run, shown, weights_of
from tests.diffusion.single_file import unet_key, write_single_file
from tests.lora_files.reference_loaders import comfy_names, comfy_patched

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]
CPU = torch.device("cpu")


def states(base: BaseModel) -> torch.Tensor:
    return encode_captions(base, ["a red circle", "inkwash"], CPU)


@pytest.fixture(scope="module")
def styles(
    base: BaseModel, images: Images, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, torch.Tensor]]:
    """The files of two short runs, and the outputs of their text encoders."""
    found = {}
    for name, option in (("plain", {"alpha": 6.0}), ("dora", {"use_dora": True})):
        plan = plan_of(images[:2], train_text_encoder=True, lora_targets="attention+ff", **option)
        with DiffusionTrainer(base, decode).open(plan, None) as session:
            for _ in range(4):
                session.advance()
            weights = weights_of(session)
            weights.copy_(weights.half().float())  # the file's precision
            path = tmp_path_factory.mktemp("style") / "style.safetensors"
            path.write_bytes(session.weights())
            with shown(session):
                found[name] = path, states(base)
    return found


@pytest.fixture
def style(styles: dict[str, tuple[Path, torch.Tensor]]) -> tuple[Path, torch.Tensor]:
    return styles["plain"]


def test_the_text_encoder_learns_and_is_restored_afterwards(
    base: BaseModel, style: tuple[Path, torch.Tensor], images: Images
) -> None:
    before = copy.deepcopy(base.text_encoder.state_dict())
    structure = [type(module) for module in base.text_encoder.modules()]
    run(DiffusionTrainer(base, decode), plan_of(images[:1], epochs=1, train_text_encoder=True))
    after = base.text_encoder.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [type(module) for module in base.text_encoder.modules()] == structure
    assert not any(weight.requires_grad for weight in base.text_encoder.parameters())
    assert (states(base) - style[1]).abs().max() > 1e-3


def test_every_key_of_the_text_encoder_is_in_kohya_format(
    style: tuple[Path, torch.Tensor],
) -> None:
    tensors, metadata = read_file(style[0].read_bytes())
    form = re.compile(
        r"lora_te_text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])"
        r"\.(lora_down\.weight|lora_up\.weight|alpha)"
    )
    found = [key for key in tensors if not key.startswith("lora_unet_")]
    assert found
    assert all(form.fullmatch(key) for key in found)
    assert metadata["ss_text_encoder_lr"] == "0.01"


@pytest.mark.parametrize(
    ("name", "form"), [("plain", None), ("plain", LoraFormat.DIFFUSERS), ("dora", None)]
)
def test_diffusers_loads_it_into_the_text_encoder(
    base: BaseModel,
    styles: dict[str, tuple[Path, torch.Tensor]],
    tmp_path: Path,
    name: str,
    form: LoraFormat | None,
) -> None:
    path, trained = styles[name]
    if form is not None:
        (path,) = write_lora(*read_lora(path), form, tmp_path, "style")
    before = states(base)
    pipeline = pipeline_of(base)
    pipeline.load_lora_weights(path)
    try:
        assert (trained - before).abs().max() > 1e-3
        torch.testing.assert_close(states(base), trained, rtol=1e-4, atol=1e-5)
    finally:
        pipeline.unload_lora_weights()


def test_magnitudes_are_exact_and_survive_kohyas_format(
    styles: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path
) -> None:
    path, _ = styles["dora"]
    tensors = safetensors.torch.load_file(path)
    magnitudes = [tensor for key, tensor in tensors.items() if "magnitude" in key]
    assert {tensor.dtype for tensor in magnitudes} == {torch.float32}
    (kohya,) = write_lora(*read_lora(path), LoraFormat.KOHYA, tmp_path / "kohya", "style")
    write_lora(*read_lora(kohya), LoraFormat.DIFFUSERS, tmp_path, "style")
    again = safetensors.torch.load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_peft_loads_a_folder_for_each_model(
    base: BaseModel, style: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    from peft import PeftModel

    path, trained = style
    write_lora(*read_lora(path), LoraFormat.PEFT, tmp_path, "style")
    model = PeftModel.from_pretrained(base.text_encoder, tmp_path / "text_encoder")
    try:
        torch.testing.assert_close(states(base), trained, rtol=1e-4, atol=1e-5)
    finally:
        model.unload()
    PeftModel.from_pretrained(base.unet, tmp_path).unload()
    (back,) = write_lora(*read_lora(tmp_path), LoraFormat.KOHYA, tmp_path / "back", "style")
    assert back.read_bytes() == path.read_bytes()


def test_comfyui_patches_the_text_encoder_of_the_original_checkpoint(
    base: BaseModel, style: tuple[Path, torch.Tensor], small_base_folder: Path, tmp_path: Path
) -> None:
    path, trained = style
    checkpoint = write_single_file(base, tmp_path / "base.safetensors")
    layers = base.unet.config.layers_per_block
    ldm = {name: unet_key(name, layers) for name in base.unet.state_dict()}
    names = comfy_names(ldm, base.text_encoder.config.num_hidden_layers)
    weights = safetensors.torch.load_file(checkpoint)
    patched = comfy_patched(weights, read_file(path.read_bytes())[0], names)
    safetensors.torch.save_file(dict(patched), checkpoint)
    model = load_base(str(checkpoint), config_folder=small_base_folder)
    torch.testing.assert_close(states(model), trained, rtol=1e-4, atol=1e-5)


def test_the_text_encoder_has_its_own_learning_rate(
    trainer: DiffusionTrainer, images: Images
) -> None:
    def moved(**parameters: Any) -> tuple[float, float]:
        """Distance that the UNet's and the text encoder's LoRA move in the first step."""
        plan = plan_of(images[:1], train_text_encoder=True, lr_warmup_steps=0, **parameters)
        with trainer.open(plan, None) as session:
            assert isinstance(session, DiffusionSession)
            weights, last = weights_of(session), session.lora.text_weights.numel()
            before = weights.clone()
            session.advance()
            step = (weights - before).abs()
            return float(step[:-last].max()), float(step[-last:].max())

    same = moved()
    slower = moved(text_encoder_lr=1e-3)
    assert slower[0] == same[0]
    assert slower[1] == pytest.approx(same[1] / 10, rel=0.02)


def test_learning_rates_far_apart_are_both_exact(
    trainer: DiffusionTrainer, images: Images
) -> None:
    """Downs start at about 0.1, where float32 is coarse, and ups at 0."""

    def moved(unet: float, text: float) -> dict[str, float]:
        """Total distance that each kind of matrix moves in four steps at these rates."""
        rates: dict[str, Any] = {"learning_rate": unet, "text_encoder_lr": text}
        rates["lr_scheduler"] = "constant"
        plan = plan_of(images[:1], epochs=4, train_text_encoder=True, **rates)
        with trainer.open(plan, None) as session:
            before = matrices(session)
            drive(session)
            after = matrices(session)
        return {kind: float((after[kind] - before[kind]).abs().sum()) for kind in after}

    def matrices(session: TrainingSession) -> dict[str, torch.Tensor]:
        assert isinstance(session, DiffusionSession)
        models = {"unet": session.lora.unet, "text": session.lora.text_encoder}
        return {
            f"{model} {kind}": torch.cat([getattr(own, kind).flatten() for own in layers.values()])
            for model, layers in models.items()
            for kind in ("down", "up")
        }

    equal, of_text, of_unet = moved(1e-4, 1e-4), moved(1e-9, 1e-4), moved(1e-4, 1e-9)
    assert of_text["text down"] == pytest.approx(equal["text down"], rel=0.05)
    assert of_text["unet up"] == pytest.approx(1e-5 * equal["unet up"], rel=0.05)
    assert of_unet["unet down"] == pytest.approx(equal["unet down"], rel=0.05)
    assert of_unet["text up"] == pytest.approx(1e-5 * equal["text up"], rel=0.05)


def test_previews_show_the_trained_text_encoder(trainer: DiffusionTrainer, images: Images) -> None:
    plan = plan_of(images[:1], train_text_encoder=True, sample_prompts=("a red circle",))
    with trainer.open(plan, None) as session:
        before = session.previews(with_lora=False)
        assert isinstance(session, DiffusionSession)
        weights, last = weights_of(session), session.lora.text_weights.numel()
        weights[-last:] += 0.3
        assert session.previews(with_lora=True) != before
        assert session.previews(with_lora=False) == before
