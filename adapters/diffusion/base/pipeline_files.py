"""Load and check a Stable Diffusion pipeline from a folder, a single file or the hub."""

from __future__ import annotations

import warnings
from pathlib import Path

from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

from adapters.diffusion.base.names import PICKLES, BaseModelInvalid, check_name, hub_has

_PIPELINE = "StableDiffusionPipeline"
_EXPECTED = {
    "unet": {"UNet2DConditionModel"},
    "vae": {"AutoencoderKL"},
    "text_encoder": {"CLIPTextModel"},
    "tokenizer": {"CLIPTokenizer", "CLIPTokenizerFast"},
}
_PREDICTIONS = {"epsilon", "v_prediction"}
_LATENT_CHANNELS = 4


def read_pipeline(name: str, config_folder: Path | None) -> StableDiffusionPipeline:
    """Load a pipeline, in float32, from safetensors files only: no pickle, no remote code.

    Args: as in ``load_base``.

    Raises:
        BaseModelInvalid: the model cannot be loaded, or is not a Stable Diffusion 1.5.
    """
    check_name(name)
    path = Path(name)
    if path.is_file():
        pipeline = _from_file(name, path, config_folder)
    else:
        pipeline = _from_folder_or_hub(name, path)
    _check(name, pipeline)
    return pipeline


def _from_file(name: str, path: Path, config_folder: Path | None) -> StableDiffusionPipeline:
    if path.suffix.lower() in PICKLES:
        raise BaseModelInvalid(name, "is a pickle, which can run code; give a .safetensors file")
    if path.suffix.lower() != ".safetensors":
        raise BaseModelInvalid(name, "is not a .safetensors file; give one, or a diffusers folder")
    local = {} if config_folder is None else {"config": str(config_folder)}
    try:
        return StableDiffusionPipeline.from_single_file(
            str(path), local_files_only=bool(local), **local
        )
    except Exception as error:  # the file may hold anything
        raise BaseModelInvalid(
            name,
            "cannot be read as a Stable Diffusion 1.5 checkpoint; give a complete one"
            f"{'' if local else ', and allow access to the hub, which has its configuration'}"
            f" ({_first_line(error)})",
        ) from error


def _from_folder_or_hub(name: str, path: Path) -> StableDiffusionPipeline:
    if path.is_dir():
        _check_folder(name, path)
    # Without this check the hub's client would retry for a minute.
    offline = not path.is_dir() and hub_has(name) is None
    try:
        with warnings.catch_warnings():
            # A deprecated argument that diffusers passes to the hub client.
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument")
            index = StableDiffusionPipeline.load_config(name, local_files_only=offline)
    except Exception as error:  # the hub client raises many types
        raise BaseModelInvalid(
            name,
            "is not a folder or a file, and could not be loaded from the hub; "
            f"check the name and the connection ({_first_line(error)})",
        ) from error
    found = index.get("_class_name")
    parts = {part: (index.get(part) or (None, None))[1] for part in _EXPECTED}
    if found != _PIPELINE or any(parts[part] not in _EXPECTED[part] for part in _EXPECTED):
        classes = ", ".join(str(part) for part in parts.values())
        raise BaseModelInvalid(
            name, f"is a {found} of {classes}; give a Stable Diffusion 1.5, which is a {_PIPELINE}"
        )
    try:
        return StableDiffusionPipeline.from_pretrained(
            name,
            text_encoder=_text_encoder(name, offline=offline),
            use_safetensors=True,
            local_files_only=offline,
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
        )
    except Exception as error:  # the files may hold anything
        raise BaseModelInvalid(
            name,
            "cannot be loaded; give a complete Stable Diffusion 1.5 in safetensors "
            f"({_first_line(error)})",
        ) from error


def _text_encoder(name: str, *, offline: bool) -> CLIPTextModel:
    """Load the text encoder. Raises an error if weights are missing, which transformers would
    initialise at random."""
    model, report = CLIPTextModel.from_pretrained(
        name,
        subfolder="text_encoder",
        use_safetensors=True,
        local_files_only=offline,
        output_loading_info=True,
    )
    if missing := report["missing_keys"]:
        raise ValueError(f"the text encoder lacks {min(missing)}")
    return model


def _check_folder(name: str, path: Path) -> None:
    if not (path / "model_index.json").is_file():
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


def _check(name: str, pipeline: StableDiffusionPipeline) -> None:
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    if any(weight.is_meta for part in parts for weight in part.parameters()):
        raise BaseModelInvalid(name, "lacks some of its weights; give a complete checkpoint")
    unet = pipeline.unet.config
    if unet.in_channels != _LATENT_CHANNELS:
        raise BaseModelInvalid(
            name, f"takes {unet.in_channels} channels, as for inpainting; give a plain model"
        )
    if unet.cross_attention_dim != pipeline.text_encoder.config.hidden_size:
        raise BaseModelInvalid(
            name, "its text encoder does not fit its unet; give a complete model"
        )
    predicts = pipeline.scheduler.config.get("prediction_type", "epsilon")
    if predicts not in _PREDICTIONS:
        raise BaseModelInvalid(
            name, f"predicts {predicts!r}; give one that predicts noise or velocity"
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
