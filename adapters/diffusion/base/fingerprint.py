"""Identify a base model by its content, independent of the file format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from adapters.diffusion.base.pipeline_files import TEXT_PREFIX


def fingerprint_of(components: Mapping[str, Any]) -> str:
    """SHA-256, in hex, over the weights and configurations that training uses of a pipeline.

    Weights are hashed in float32. A diffusers folder and a single-file checkpoint of the same
    model have the same fingerprint, and so do float32 and float16 files of weights that float16
    represents exactly. It is the same with every supported version of transformers.
    """
    weights = {
        f"{part}.{name.removeprefix(TEXT_PREFIX)}": weight
        for part in ("unet", "vae", "text_encoder")
        for name, weight in components[part].state_dict().items()
    }
    configs = [
        # Without diffusers' private entries, such as its version and the path of the source.
        {key: value for key, value in components[part].config.items() if not key.startswith("_")}
        for part in ("unet", "vae", "scheduler")
    ]
    whole = hashlib.sha256(json.dumps(configs, sort_keys=True, default=str).encode())
    with ThreadPoolExecutor() as pool:  # hashlib releases the GIL
        digests = dict(zip(weights, pool.map(_digest_of, weights.values()), strict=True))
    for name in sorted(digests):
        whole.update(f"{name} {digests[name]}\n".encode())
    return whole.hexdigest()


def _digest_of(weight: torch.Tensor) -> str:
    """A weight's shape, and the SHA-256 in hex of its values in float32."""
    values = weight.detach().float().contiguous()
    return f"{tuple(weight.shape)} {hashlib.sha256(values.numpy().data).hexdigest()}"
