"""The expected file of a style: that of an undisturbed run, trained alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from math import inf, sqrt
from pathlib import Path
from typing import Any

import torch

from adapters.common.tensor_file import TensorFileDamaged, decode
from tests.faults.deployment import FIRST_STYLE, Deployment, task_body
from tests.faults.pool import server_with_wall_clock
from tests.faults.stores import IMAGES, MODELS
from tests.services.commands import run

OF_VALUES = ("modelspec.hash_sha256", "sshs_model_hash")
"""Metadata that differ if any value does: hashes over all values."""
WITHIN_ROUNDING = 5e-5
"""Maximum distance between a style trained with others and the same style trained alone.

Measured on such tasks with 24 epochs: 3e-6 at most for disturbed runs, three in a pass; 7e-4
for one missing epoch, 1e-2 for other images, 0.4 for the other seed.
"""


def references(deployment: Deployment, folder: Path, seeds: Sequence[int]) -> dict[int, bytes]:
    """The file of each variant, trained by the worker with its embedded adapters."""
    spool, buckets = folder / "spool", folder / "buckets"
    spool.mkdir(parents=True)
    shutil.copytree(folder.parent / "images", buckets / IMAGES)
    settings: dict[str, Any] = {
        "SPOOL_DIR": str(spool),
        "STORAGE_DIR": str(buckets),
        "AWS_STORAGE_BUCKET_NAME": IMAGES,
        "MODEL_BUCKET_NAME": MODELS,
        "PREVIEW_SHARE": "0",
    }
    for number, seed in enumerate(seeds):
        task_id = f"00000000-0000-4000-8000-{seed:012d}"
        body = task_body(task_id, FIRST_STYLE + number, seed, deployment.images)
        (spool / f"{seed}.json").write_bytes(body)
    done = run("worker", "--once", cwd=folder, server=server_with_wall_clock(), **settings)
    files = {
        seed: buckets / MODELS / "models" / f"style_{FIRST_STYLE + number}.safetensors"
        for number, seed in enumerate(seeds)
    }
    if not all(file.exists() for file in files.values()):
        raise RuntimeError(f"the undisturbed run made no style:\n{done.stderr}")
    return {
        seed: files[seed]
        .read_bytes()
        .replace(f"style_{FIRST_STYLE + number}".encode(), b"style_%d")
        for number, seed in enumerate(seeds)
    }


def expected(references: dict[int, bytes], seed: int, style_id: int) -> bytes:
    """The expected file of this style: the reference with the style's own name."""
    return references[seed].replace(b"style_%d", f"style_{style_id}".encode())


def distance(found: bytes, wanted: bytes) -> float:
    """Relative L2 distance between a style's tensors and the expected ones, over all tensors.

    Infinite if they cannot be compared: the file is damaged, or names, shapes, types or metadata
    differ.
    """
    try:
        (tensors, facts), (targets, wanted_facts) = decode(found), decode(wanted)
    except TensorFileDamaged:
        return inf
    for name in OF_VALUES:
        facts.pop(name, None)
        wanted_facts.pop(name)
    if facts != wanted_facts or _forms(tensors) != _forms(targets):
        return inf
    pairs = [(tensors[name].double(), target.double()) for name, target in targets.items()]
    apart = sum(float((one - other).square().sum()) for one, other in pairs)
    return sqrt(apart / sum(float(other.square().sum()) for _, other in pairs))


def _forms(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
