"""safetensors files in memory with metadata. Equal content always gives equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError

_METADATA = "__metadata__"
_ALIGNMENT = 8


class TensorFileDamaged(Exception):
    """The bytes are not a complete safetensors file."""


def encode(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Write a file.

    The library writes metadata in the order of a hash table that differs from call to call. So
    the header (a length in 8 bytes, little-endian, then JSON padded with spaces) is rewritten
    with sorted keys; offsets count from its end and stay valid.
    """
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Paths and names may hold bytes that are not UTF-8.
    texts = {name: text.encode(errors="replace").decode() for name, text in metadata.items()}
    data = safetensors.torch.save(on_host, texts)
    header, body = _split(data)
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text + body


def decode(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a file's tensors and metadata.

    Raises:
        TensorFileDamaged: the file is truncated or not a safetensors file.
    """
    try:
        tensors = safetensors.torch.load(data)
        metadata = _split(data)[0].get(_METADATA) or {}
    except (SafetensorError, KeyError, ValueError) as error:
        raise TensorFileDamaged(str(error)) from error
    return tensors, metadata


def body_of(data: bytes) -> bytes:
    """The tensors' bytes without the header: the part of a model file that hashes cover."""
    return _split(data)[1]


def _split(data: bytes) -> tuple[dict[str, dict[str, str]], bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]
