"""LoRA files on disk and in memory: read any known format, write a requested one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from adapters.common.files import write_atomically
from adapters.common.tensor_file import TensorFileDamaged, body_of, decode, encode
from adapters.lora_files.diffusers_format import (
    DIFFUSERS_METADATA,
    from_diffusers,
    json_object,
    to_diffusers,
)
from adapters.lora_files.kohya_format import from_kohya, is_kohya, to_kohya
from adapters.lora_files.lora_formats import (
    TEXT_ENCODER,
    UNET,
    InvalidLoraFile,
    LoraFormat,
    LoraWeights,
    Tensors,
)
from adapters.lora_files.other_models import other_model
from adapters.lora_files.peft_format import (
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    from_peft,
    peft_name,
    to_peft,
)
from domain.errors import UserError

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
"""The file that diffusers looks for in a folder."""
MAX_BYTES = 2 * 1024**3
"""Upper limit: no LoRA of Stable Diffusion 1.5 is larger, but whole checkpoints are."""
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_PICKLE = (
    "a pickle (.bin, .pt, .ckpt), which is not read because it can run code; save the LoRA as "
    ".safetensors"
)
_BEGINNINGS = {
    b"PK\x03\x04": _PICKLE,
    b"\x80\x02": _PICKLE,
    b"\x80\x03": _PICKLE,
    b"\x80\x04": _PICKLE,
    b"\x80\x05": _PICKLE,
    b"<": "an HTML or XML page, not a model: the download failed or needs a login",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with git lfs pull",
    b"GGUF": "a GGUF model, not a LoRA in safetensors",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"{": "a JSON text, not a safetensors file",
}


def read_lora(path: Path) -> tuple[LoraWeights, dict[str, str]]:
    """A LoRA and its metadata, from a file or a folder in any of the formats.

    Raises:
        InvalidLoraFile: no LoRA there; the message says what was found and what to pass instead.
    """
    try:
        if path.is_dir():
            return _read_folder(path)
        if not path.is_file():
            raise InvalidLoraFile("no such file or folder")
        return _read_file(path)
    except (InvalidLoraFile, ValueError, OSError) as error:
        remedy = "give a LoRA of Stable Diffusion 1.5: a .safetensors file, or PEFT's folder"
        raise InvalidLoraFile(f"{path}: {error}; {remedy}") from error


def decode_lora(data: bytes) -> tuple[LoraWeights, dict[str, str]]:
    """The LoRA and the metadata of one safetensors file, in kohya's or diffusers' format.

    Raises:
        InvalidLoraFile: not a LoRA of Stable Diffusion 1.5; the message says what it is.
    """
    tensors, metadata = _decode(data)
    _reject_other_models(tensors, metadata)
    weights = from_kohya(tensors) if is_kohya(tensors) else from_diffusers(tensors, metadata)
    return weights, metadata


def encode_lora(
    weights: LoraWeights, metadata: Mapping[str, str], form: LoraFormat, name: str
) -> dict[str, bytes]:
    """The files of a LoRA in one format, by their paths in the target folder.

    ``name`` is used by kohya's format only; the other two prescribe their files' names. PEFT's is
    a folder for ``PeftModel.from_pretrained(unet, folder)``; a text encoder's LoRA is in its
    subfolder ``text_encoder``. Equal weights give equal bytes.

    Raises:
        InvalidLoraFile: the format cannot express the weights.
    """
    kept = {key: value for key, value in metadata.items() if key != DIFFUSERS_METADATA}
    if form is LoraFormat.KOHYA:
        return {f"{name}.safetensors": hashed(to_kohya(weights), kept)}
    if form is LoraFormat.DIFFUSERS:
        tensors, own = to_diffusers(weights)
        return {DIFFUSERS_NAME: hashed(tensors, {**kept, **own})}
    files = {}
    for folder, (config, tensors) in to_peft(weights, kept.get("ss_sd_model_name")).items():
        files[peft_name(folder, PEFT_CONFIG)] = config
        files[peft_name(folder, PEFT_WEIGHTS)] = hashed(tensors, kept)
    return files


def write_lora(
    weights: LoraWeights,
    metadata: Mapping[str, str],
    form: LoraFormat,
    folder: Path,
    name: str,
    source: Path | None = None,
) -> list[Path]:
    """Write the files of ``encode_lora`` into ``folder`` and return their paths, in order.

    Args:
        source: the file or folder that the LoRA was read from, which is left as it is.

    Raises:
        InvalidLoraFile: as ``encode_lora``.
        UserError: a file of ``source`` would be replaced, or ``folder`` cannot be written.
    """
    encoded = encode_lora(weights, metadata, form, name)
    files = {folder / file: data for file, data in encoded.items()}
    own = source and source.resolve()
    if own and any(path.exists() and path.resolve().is_relative_to(own) for path in files):
        raise UserError(f"{folder}: holds the LoRA itself; give another folder")
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data, temporary=path.with_name(".incomplete"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{folder}: cannot be written ({reason}); give another folder") from None
    return list(files)


def hashed(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with the hashes of its tensors in the metadata, as ModelSpec and
    AUTOMATIC1111 require."""
    digest = hashlib.sha256(body_of(encode(tensors, {}))).hexdigest()
    hashes = {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    return encode(tensors, {**metadata, **hashes})


def _read_file(path: Path) -> tuple[LoraWeights, dict[str, str]]:
    if path.stat().st_size > MAX_BYTES:
        raise InvalidLoraFile("it is larger than 2 GB: a whole checkpoint, not a LoRA")
    return decode_lora(path.read_bytes())


def _read_folder(path: Path) -> tuple[LoraWeights, dict[str, str]]:
    folders = {UNET: path, TEXT_ENCODER: path / TEXT_ENCODER}
    if not (path / PEFT_CONFIG).is_file():
        folders[UNET] = path / UNET
    present = {model: home for model, home in folders.items() if (home / PEFT_CONFIG).is_file()}
    if present:
        return _read_peft(present)
    if (path / DIFFUSERS_NAME).is_file():
        return _read_file(path / DIFFUSERS_NAME)
    files = sorted(file for file in path.iterdir() if file.suffix == ".safetensors")
    if len(files) == 1:
        return _read_file(files[0])
    if files:
        names = ", ".join(file.name for file in files[:3])
        raise InvalidLoraFile(
            f"the folder holds {len(files)} safetensors files ({names}): name one"
        )
    pickle = next((file.name for file in sorted(path.iterdir()) if file.suffix in _PICKLES), None)
    if pickle is not None:
        raise InvalidLoraFile(f"the folder holds no .safetensors file; {pickle} is {_PICKLE}")
    raise InvalidLoraFile(f"the folder holds no .safetensors file and no {PEFT_CONFIG}")


def _read_peft(folders: Mapping[str, Path]) -> tuple[LoraWeights, dict[str, str]]:
    weights: LoraWeights = {}
    metadata: dict[str, str] = {}
    for model, folder in folders.items():
        file = folder / PEFT_WEIGHTS
        if not file.is_file():
            pickled = file.with_suffix(".bin")
            found = f"; {pickled.name} is {_PICKLE}" if pickled.is_file() else ""
            raise InvalidLoraFile(f"{folder.name} has no {PEFT_WEIGHTS}{found}")
        tensors, metadata = _decode(file.read_bytes())
        _reject_other_models(tensors, metadata)
        config = json_object((folder / PEFT_CONFIG).read_text(encoding="utf-8"), PEFT_CONFIG)
        weights = {**weights, **from_peft(model, tensors, config)}
    return weights, metadata


def _decode(data: bytes) -> tuple[Tensors, dict[str, str]]:
    if not data:
        raise InvalidLoraFile("the file is empty")
    try:
        tensors, metadata = decode(data)
    except TensorFileDamaged as error:
        start = data[:64].lstrip()
        for beginning, kind in _BEGINNINGS.items():
            if start.startswith(beginning):
                raise InvalidLoraFile(f"it is {kind}") from error
        raise InvalidLoraFile(f"the file is damaged or not in safetensors ({error})") from error
    if not tensors:
        raise InvalidLoraFile("the file holds no tensors")
    return tensors, metadata


def _reject_other_models(tensors: Tensors, metadata: Mapping[str, str]) -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if (kind := other_model(shapes, metadata)) is not None:
        raise InvalidLoraFile(f"it is {kind}")
