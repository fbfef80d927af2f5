"""Write the base model's folder: half precision, safetensors, checksums, and a README."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

CHECKSUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Provenance:
    """How a base was made."""

    command: str
    minutes: float
    torch_version: str
    start: str | None
    """The base whose vocabulary and autoencoder are reused; None if they were made, too."""


def store_base(
    pipeline: StableDiffusionPipeline, vocabulary: Path, folder: Path, provenance: Provenance
) -> None:
    """Write `pipeline` in diffusers' layout, in fp16, with a README and checksums.

    The vocabulary's folder is copied unchanged: every version of transformers can read
    `vocab.json` and `merges.txt`.
    """
    for model in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        model.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    _name_as_sd15(folder / "text_encoder" / "model.safetensors")
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(vocabulary, folder / "tokenizer")
    (folder / "README.md").write_text(_readme(pipeline, provenance), "utf-8")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
    (folder / CHECKSUMS).write_text(checksums(folder), "utf-8")


def checksums(folder: Path) -> str:
    """List every file below `folder` except the list itself, in the format of `sha256sum`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in paths
    )


def _name_as_sd15(weights: Path) -> None:
    """Restore the prefix of SD 1.5's file: transformers 5 omits it, and 4 needs it."""
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})


def _readme(pipeline: StableDiffusionPipeline, provenance: Provenance) -> str:
    sizes = "\n".join(
        f"- {name}: {sum(p.numel() for p in model.parameters()):,} parameters"
        for name, model in (
            ("UNet", pipeline.unet),
            ("autoencoder", pipeline.vae),
            ("text encoder", pipeline.text_encoder),
        )
    )
    origin = ""
    if provenance.start is not None:
        origin = f"""
Vocabulary and autoencoder were not made then, but taken from the base in `{provenance.start}`.
The same script had trained that autoencoder before, in its default 2400 steps and about as much
time again; without `--start-from` it makes everything anew.
"""
    return f"""# Small base

A text-to-image model with the parts and the noise schedule of Stable Diffusion 1.5, made narrow.
It knows one thing: flat images of coloured shapes at 128 px, such as "a large red circle on a
blue background". It stands in for the real base where that is too large: in tests and in the
demo. All its images were drawn by `assets/drawing.py`.

{sizes}

Weights are in fp16. They were made in {provenance.minutes:.0f} minutes on a CPU, with torch
{provenance.torch_version}, by

    {provenance.command}
{origin}
`sha256sum -c SHA256SUMS` checks the files.
"""
