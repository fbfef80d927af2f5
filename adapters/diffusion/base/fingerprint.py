"""Tell one base model from another, whatever file it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from diffusers import StableDiffusionPipeline


def fingerprint_of(
    pipeline: StableDiffusionPipeline, denoiser: Mapping[str, str] | None = None
) -> str:
    """SHA-256, in hex, over all weights and configuration of the parts that training uses.

    The weights are hashed in float32: a folder and a single file of it agree, and so do files
    in float32 and in half precision of weights that fit into the latter.

    Args:
        denoiser: its weights' digests where they have been taken already.
    """
    digests = {f"unet.{name}": digest for name, digest in (denoiser or {}).items()}
    weights = {
        f"{part}.{name}": weight
        for part in ("unet", "vae", "text_encoder")
        if part != "unet" or denoiser is None
        for name, weight in getattr(pipeline, part).state_dict().items()
    }
    configs = [
        _public(config)
        for config in (pipeline.unet.config, pipeline.vae.config, pipeline.scheduler.config)
    ]
    whole = hashlib.sha256(json.dumps(configs, sort_keys=True, default=str).encode())
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter's lock; 4 GB take a while
        digests |= zip(weights, pool.map(digest_of, weights.values()), strict=True)
    for name in sorted(digests):
        whole.update(f"{name} {digests[name]}\n".encode())
    return whole.hexdigest()


def digest_of(weight: torch.Tensor) -> str:
    """A weight's shape, and SHA-256 in hex over its values in float32."""
    values = weight.detach().float().contiguous()
    return f"{tuple(weight.shape)} {hashlib.sha256(values.numpy().data).hexdigest()}"


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the library's own notes: its version and the path that was loaded from."""
    return {key: value for key, value in config.items() if not key.startswith("_")}
