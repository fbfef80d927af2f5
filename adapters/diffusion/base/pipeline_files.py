"""Load and check Stable Diffusion's parts from a folder, a single file or the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from adapters.diffusion.base.names import PICKLES, BaseModelInvalid, check_name, hub_has, is_cached
from adapters.diffusion.lora_targets import UNET_LAYERS, layers_ending
from adapters.lora_files.lora_formats import UNET, is_layer
from adapters.lora_files.other_models import CONTEXT_WIDTHS
from domain.parameters import LoraTargets

_PIPELINE = "StableDiffusionPipeline"
_EXPECTED = {
    "unet": {"UNet2DConditionModel"},
    "vae": {"AutoencoderKL"},
    "text_encoder": {"CLIPTextModel"},
    "tokenizer": {"CLIPTokenizer", "CLIPTokenizerFast"},
}
_INDEX = "model_index.json"
_FILES = [
    "*.json",
    "tokenizer/*",
    "*/diffusion_pytorch_model.safetensors",
    "*/diffusion_pytorch_model-*.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/model-*.safetensors",
]
"""Files of a model at the hub that training uses: not those in half precision."""
TEXT_PREFIX = "text_model."
"""Of the text encoder's weights; models of transformers 5 and some files omit it."""
_PREDICTIONS = {"epsilon", "v_prediction"}
_LATENT_CHANNELS = 4


def read_components(name: str, config_folder: Path | None) -> dict[str, Any]:
    """Load a pipeline's components: tokenizer, text encoder, VAE, UNet and scheduler.

    Arguments and errors are those of ``load_base``.
    """
    check_name(name)
    path = Path(name)
    if path.is_file():
        components = _from_file(name, path, config_folder)
    else:
        components = _from_folder(name, path if path.is_dir() else _downloaded(name))
    _check(name, components)
    return components


def _from_file(name: str, path: Path, config_folder: Path | None) -> dict[str, Any]:
    if path.suffix.lower() in PICKLES:
        raise BaseModelInvalid(name, "is a pickle, which can run code; give a .safetensors file")
    if path.suffix.lower() != ".safetensors":
        raise BaseModelInvalid(name, "is not a .safetensors file; give one, or a diffusers folder")
    local = {} if config_folder is None else {"config": str(config_folder)}
    from diffusers import StableDiffusionPipeline

    try:
        pipeline = StableDiffusionPipeline.from_single_file(
            str(path), local_files_only=bool(local), **local
        )
    except Exception as error:  # the file may hold anything
        raise BaseModelInvalid(
            name,
            "cannot be read as a Stable Diffusion 1.5 checkpoint; give a complete one"
            f"{'' if local else ', and allow access to the hub, which has its configuration'}"
            f" ({_in_one_line(error)})",
        ) from error
    return dict(pipeline.components)


def _downloaded(name: str) -> Path:
    """The folder in the hub's cache with the model's files, which are downloaded if needed."""
    # An interrupted download leaves a part of the model.
    needed = not is_cached(name, "unet/diffusion_pytorch_model.safetensors")
    offline = hub_has(name, needed=needed) is None  # the hub's client would retry for a minute
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=offline))
    except Exception as error:  # the hub client raises many types
        raise BaseModelInvalid(
            name,
            "is not a folder or a file, and could not be loaded from the hub; "
            f"check the name and the connection ({_in_one_line(error)})",
        ) from error


def _from_folder(name: str, folder: Path) -> dict[str, Any]:
    _check_folder(name, folder)
    try:
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        found = index.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise BaseModelInvalid(
            name, f"has a damaged {_INDEX}; give a complete folder ({_in_one_line(error)})"
        ) from error
    classes = {part: _class_of(index.get(part)) for part in _EXPECTED}
    if found != _PIPELINE or any(classes[part] not in _EXPECTED[part] for part in _EXPECTED):
        named = ", ".join(str(part) for part in classes.values())
        raise BaseModelInvalid(
            name, f"is a {found} of {named}; give a Stable Diffusion 1.5, which is a {_PIPELINE}"
        )
    # Part by part: importing the pipeline itself takes long, and only previews use it.
    try:
        scheduler = getattr(diffusers, str(_class_of(index.get("scheduler"))))
        return {
            "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            "text_encoder": _text_encoder(folder / "text_encoder"),
            "vae": AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True),
            "unet": UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True),
            "scheduler": scheduler.from_pretrained(folder / "scheduler"),
        }
    except Exception as error:  # the files may hold anything
        raise BaseModelInvalid(
            name,
            "cannot be loaded; give a complete Stable Diffusion 1.5 in safetensors "
            f"({_in_one_line(error)})",
        ) from error


def _class_of(entry: object) -> str | None:
    """The class in a part's entry of the index, ``[library, class]``; None if there is none."""
    match entry:
        case [_, str(name)]:
            return name
    return None


def _text_encoder(folder: Path) -> CLIPTextModel:
    """Load the text encoder. Raises an error if weights are missing.

    Not with its ``from_pretrained``, which imports sympy and draws missing weights at random.
    """
    model = _Uninitialised(CLIPTextConfig.from_pretrained(folder))
    whole = folder / "model.safetensors"
    names = {key.removeprefix(TEXT_PREFIX): key for key in model.state_dict()}
    weights: dict[str, torch.Tensor] = {}
    for file in [whole] if whole.is_file() else folder.glob("model-*.safetensors"):
        for key, weight in load_file(file).items():
            weights[names.get(key.removeprefix(TEXT_PREFIX), key)] = weight
    missing, _ = model.load_state_dict(weights, strict=False)  # old files also have positions
    if missing:
        raise ValueError(f"the text encoder lacks {min(missing)}")
    return model


class _Uninitialised(CLIPTextModel):  # type: ignore[misc] # untyped
    """A text encoder whose weights are loaded, so that initial ones are not needed."""

    def init_weights(self) -> None:
        """Does nothing."""


def _check_folder(name: str, path: Path) -> None:
    if not (path / _INDEX).is_file():
        raise BaseModelInvalid(
            name, "has no model_index.json; give a folder as diffusers' save_pretrained writes it"
        )
    for part in ("unet", "vae", "text_encoder"):
        if not any((path / part).glob("*.safetensors")):
            pickled = any(file.suffix in PICKLES for file in (path / part).glob("*"))
            remedy = (
                f"has only pickles in {part}/, which can run code; convert them to safetensors"
                if pickled
                else f"has no .safetensors in {part}/; give a complete diffusers folder"
            )
            raise BaseModelInvalid(name, remedy)


def _check(name: str, components: Mapping[str, Any]) -> None:
    unet, text_encoder = components["unet"], components["text_encoder"]
    parts = (unet, components["vae"], text_encoder)
    if any(weight.is_meta for part in parts for weight in part.parameters()):
        raise BaseModelInvalid(name, "lacks some of its weights; give a complete checkpoint")
    if (channels := unet.config.in_channels) != _LATENT_CHANNELS:
        raise BaseModelInvalid(
            name, f"takes {channels} channels, as for inpainting; give a plain model"
        )
    if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
        raise BaseModelInvalid(name, "its text encoder does not fit its UNet; give a whole model")
    # A style of another model would be labelled as one of SD 1.5, and could not be read.
    layers = layers_ending(unet, UNET_LAYERS[LoraTargets.CONVOLUTIONS])
    foreign = (f"a model with {layer}" for layer in layers if not is_layer((UNET, layer)))
    if other := CONTEXT_WIDTHS.get(unet.config.cross_attention_dim) or next(foreign, None):
        raise BaseModelInvalid(name, f"is {other}; give a Stable Diffusion 1.5")
    predicts = components["scheduler"].config.get("prediction_type", "epsilon")
    if predicts not in _PREDICTIONS:
        raise BaseModelInvalid(
            name, f"predicts {predicts!r}; give one that predicts noise or velocity"
        )


def _in_one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
