"""Tell one base model from another, whatever file it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from diffusers import StableDiffusionPipeline


def fingerprint_of(pipeline: StableDiffusionPipeline) -> str:
    """SHA-256, in hex, over all weights and configuration of the parts that training uses.

    The weights are hashed as loaded, in float32: a folder and a single file of it agree.
    """
    weights = {
        f"{part}.{name}": weight
        for part in ("unet", "vae", "text_encoder")
        for name, weight in getattr(pipeline, part).state_dict().items()
    }
    configs = [
        _public(config)
        for config in (pipeline.unet.config, pipeline.vae.config, pipeline.scheduler.config)
    ]
    whole = hashlib.sha256(json.dumps(configs, sort_keys=True, default=str).encode())
    names = sorted(weights)
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter's lock; 4 GB take a while
        digests = pool.map(lambda name: _digest(weights[name]), names)
        for name, digest in zip(names, digests, strict=True):
            whole.update(f"{name} {tuple(weights[name].shape)} {digest}\n".encode())
    return whole.hexdigest()


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the library's own notes: its version and the path that was loaded from."""
    return {key: value for key, value in config.items() if not key.startswith("_")}
