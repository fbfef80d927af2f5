"""Load and check Stable Diffusion's parts from a folder, a single file or the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from adapters.diffusion.base.names import PICKLES, BaseModelInvalid, check_name, hub_has

_PIPELINE = "StableDiffusionPipeline"
_EXPECTED = {
    "unet": {"UNet2DConditionModel"},
    "vae": {"AutoencoderKL"},
    "text_encoder": {"CLIPTextModel"},
    "tokenizer": {"CLIPTokenizer", "CLIPTokenizerFast"},
}
_INDEX = "model_index.json"
_TEXT, _WEIGHTS, _SHARDS = "text_encoder", "model.safetensors", "model-*.safetensors"
_PREFIX = "text_model."
"""Of the text encoder's weights; models of transformers 5 and some files omit it."""
_PREDICTIONS = {"epsilon", "v_prediction"}
_LATENT_CHANNELS = 4


@dataclass(frozen=True)
class PipelineParts:
    """The parts of a pipeline that training uses."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: SchedulerMixin


def read_pipeline(name: str, config_folder: Path | None) -> PipelineParts:
    """Load a pipeline's parts, in float32, from safetensors files only: no pickle, no remote code.

    Args: as in ``load_base``.

    Raises:
        BaseModelInvalid: the model cannot be loaded, or is not a Stable Diffusion 1.5.
    """
    check_name(name)
    path = Path(name)
    if path.is_file():
        parts = _from_file(name, path, config_folder)
    else:
        parts = _from_folder_or_hub(name, path)
    _check(name, parts)
    return parts


def _from_file(name: str, path: Path, config_folder: Path | None) -> PipelineParts:
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
    return PipelineParts(
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        vae=pipeline.vae,
        unet=pipeline.unet,
        scheduler=pipeline.scheduler,
    )


def _from_folder_or_hub(name: str, path: Path) -> PipelineParts:
    if path.is_dir():
        _check_folder(name, path)
    # Without this check the hub's client would retry for a minute.
    offline = not path.is_dir() and hub_has(name) is None
    try:
        index = _index(name, path, offline=offline)
    except Exception as error:  # the hub client raises many types
        if path.is_dir():
            raise BaseModelInvalid(
                name, f"has a damaged {_INDEX}; give a complete folder ({_in_one_line(error)})"
            ) from error
        raise BaseModelInvalid(
            name,
            "is not a folder or a file, and could not be loaded from the hub; "
            f"check the name and the connection ({_in_one_line(error)})",
        ) from error
    found = index.get("_class_name")
    parts = {part: _class_of(index.get(part)) for part in _EXPECTED}
    if found != _PIPELINE or any(parts[part] not in _EXPECTED[part] for part in _EXPECTED):
        classes = ", ".join(str(part) for part in parts.values())
        raise BaseModelInvalid(
            name, f"is a {found} of {classes}; give a Stable Diffusion 1.5, which is a {_PIPELINE}"
        )
    # Part by part: importing the pipeline itself takes long, and only previews use it.
    safetensors: dict[str, Any] = {"use_safetensors": True, "local_files_only": offline}
    try:
        scheduler = getattr(diffusers, str(_class_of(index.get("scheduler"))))
        return PipelineParts(
            tokenizer=CLIPTokenizer.from_pretrained(
                name, subfolder="tokenizer", local_files_only=offline
            ),
            text_encoder=_text_encoder(name, path, offline=offline),
            vae=AutoencoderKL.from_pretrained(name, subfolder="vae", **safetensors),
            unet=UNet2DConditionModel.from_pretrained(name, subfolder="unet", **safetensors),
            scheduler=scheduler.from_pretrained(
                name, subfolder="scheduler", local_files_only=offline
            ),
        )
    except Exception as error:  # the files may hold anything
        raise BaseModelInvalid(
            name,
            "cannot be loaded; give a complete Stable Diffusion 1.5 in safetensors "
            f"({_in_one_line(error)})",
        ) from error


def _index(name: str, path: Path, *, offline: bool) -> dict[str, Any]:
    """The pipeline's class and, by the name of each part, its library and class."""
    if not path.is_dir():
        path = Path(hf_hub_download(name, _INDEX, local_files_only=offline)).parent
    index = json.loads((path / _INDEX).read_text("utf-8"))
    if not isinstance(index, dict):
        raise ValueError("it is not a JSON object")
    return index


def _class_of(entry: object) -> str | None:
    """The class in a part's entry of the index, ``[library, class]``; None if there is none."""
    match entry:
        case [_, str(name)]:
            return name
    return None


def _text_encoder(name: str, path: Path, *, offline: bool) -> CLIPTextModel:
    """Load the text encoder. Raises an error if weights are missing.

    Not with its ``from_pretrained``, which imports sympy and draws missing weights at random.
    """
    if not path.is_dir():
        file = hf_hub_download(name, f"{_TEXT}/{_WEIGHTS}", local_files_only=offline)
        hf_hub_download(name, f"{_TEXT}/config.json", local_files_only=offline)
        path = Path(file).parent.parent
    model = _Uninitialised(CLIPTextConfig.from_pretrained(path / _TEXT))
    whole = path / _TEXT / _WEIGHTS
    names = {key.removeprefix(_PREFIX): key for key in model.state_dict()}
    weights: dict[str, torch.Tensor] = {}
    for part in [whole] if whole.is_file() else (path / _TEXT).glob(_SHARDS):
        for key, weight in load_file(part).items():
            weights[names.get(key.removeprefix(_PREFIX), key)] = weight
    if not weights:
        raise ValueError(f"{_TEXT} has no {_WEIGHTS}")
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


def _check(name: str, found: PipelineParts) -> None:
    parts = (found.unet, found.vae, found.text_encoder)
    if any(weight.is_meta for part in parts for weight in part.parameters()):
        raise BaseModelInvalid(name, "lacks some of its weights; give a complete checkpoint")
    unet = found.unet.config
    if unet.in_channels != _LATENT_CHANNELS:
        raise BaseModelInvalid(
            name, f"takes {unet.in_channels} channels, as for inpainting; give a plain model"
        )
    if unet.cross_attention_dim != found.text_encoder.config.hidden_size:
        raise BaseModelInvalid(
            name, "its text encoder does not fit its unet; give a complete model"
        )
    predicts = found.scheduler.config.get("prediction_type", "epsilon")
    if predicts not in _PREDICTIONS:
        raise BaseModelInvalid(
            name, f"predicts {predicts!r}; give one that predicts noise or velocity"
        )


def _in_one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
