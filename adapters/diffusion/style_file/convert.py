"""Style files on disk, read in whatever form they are and written in the form asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import torch

from adapters.diffusion.style_file.forms import (
    DIFFUSERS_METADATA,
    TEXT_ENCODER,
    UNET,
    Style,
    StyleFileInvalid,
    from_diffusers,
    from_kohya,
    from_peft,
    peft_config,
    to_diffusers,
    to_kohya,
    to_peft,
    write_style,
)
from adapters.diffusion.tensor_file import TensorFileDamaged, decode

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
"""The file that diffusers looks for in a folder."""
_PEFT_CONFIG, _PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Form(StrEnum):
    """Whose way of keeping a LoRA."""

    DIFFUSERS = "diffusers"
    KOHYA = "kohya"
    PEFT = "peft"


def read_style(path: Path) -> tuple[Style, dict[str, str]]:
    """A style and its metadata, from a file or a folder in any of the forms.

    Raises:
        StyleFileInvalid: there is none; says what was found and what to give.
    """
    try:
        if path.is_file():
            return _read_file(path)
        if (path / DIFFUSERS_NAME).is_file():
            return _read_file(path / DIFFUSERS_NAME)
        if (path / _PEFT_CONFIG).is_file():
            return _read_peft({UNET: path})
        folders = {model: path / model for model in (UNET, TEXT_ENCODER)}
        present = {m: folder for m, folder in folders.items() if (folder / _PEFT_CONFIG).is_file()}
        if not present:
            found = f"has no {DIFFUSERS_NAME} or {_PEFT_CONFIG}" if path.exists() else "is no file"
            raise StyleFileInvalid(found)
        return _read_peft(present)
    except (StyleFileInvalid, TensorFileDamaged, ValueError, OSError, re.error) as error:
        remedy = "give a LoRA of Stable Diffusion 1.5: a .safetensors file, or PEFT's folder"
        raise StyleFileInvalid(f"{path}: {error}; {remedy}") from error


def write_form(
    style: Style, metadata: Mapping[str, str], form: Form, folder: Path, name: str
) -> list[Path]:
    """Write the style and return the files, in order. Equal styles give equal bytes.

    PEFT's adapters belong to one model each: where the text encoder has some too, there is a
    folder for each.
    """
    kept = {key: value for key, value in metadata.items() if key != DIFFUSERS_METADATA}
    files: dict[Path, bytes] = {}
    if form is Form.KOHYA:
        files[folder / f"{name}.safetensors"] = write_style(to_kohya(style), kept)
    elif form is Form.DIFFUSERS:
        tensors, own = to_diffusers(style)
        files[folder / DIFFUSERS_NAME] = write_style(tensors, {**kept, **own})
    else:
        models = list(dict.fromkeys(model for model, _ in style))
        for model in models:
            home = folder if models == [UNET] else folder / model
            files[home / _PEFT_CONFIG] = _peft_settings(style, model, kept)
            files[home / _PEFT_WEIGHTS] = write_style(to_peft(style, model), kept)
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return list(files)


def _read_file(path: Path) -> tuple[Style, dict[str, str]]:
    tensors, metadata = _tensors_of(path)
    if any(name.startswith(("lora_unet_", "lora_te_")) for name in tensors):
        return from_kohya(tensors), metadata
    return from_diffusers(tensors, metadata), metadata


def _read_peft(folders: Mapping[str, Path]) -> tuple[Style, dict[str, str]]:
    style: Style = {}
    metadata: dict[str, str] = {}
    for model, folder in folders.items():
        tensors, metadata = _tensors_of(folder / _PEFT_WEIGHTS)
        config = json.loads((folder / _PEFT_CONFIG).read_text(encoding="utf-8"))
        style = {**style, **from_peft(model, tensors, config)}
    return style, metadata


def _tensors_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    tensors, metadata = decode(path.read_bytes())
    if not tensors:
        raise StyleFileInvalid(f"{path.name} holds no tensors")
    return tensors, metadata


def _peft_settings(style: Style, model: str, metadata: Mapping[str, str]) -> bytes:
    from peft import LoraConfig

    config = LoraConfig(
        **peft_config(style, model),
        base_model_name_or_path=metadata.get("ss_sd_model_name"),
        inference_mode=True,
    )
    # Sets come in the order of a hash table.
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, default=sorted)
    return f"{text}\n".encode()
