"""The commands to compare: ours, kohya's sd-scripts and diffusers' example.

The peers are not part of this repository. Check them out and install their requirements.
Each command uses the same base model, images, resolution, batch size, rank and number of steps,
and the fast settings that the peer's own documentation recommends.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
LAUNCHER = Path(__file__).with_name("without_torchvision.py")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Inputs and settings that are the same for all programs."""

    base: Path
    """A diffusers folder with a Stable Diffusion 1.x model."""
    images: Path
    """A folder of images, each with its caption beside it as ``<name>.txt``."""
    scratch: Path
    device: str
    resolution: int
    batch_size: int
    rank: int
    steps: int
    compiled: bool = False
    """Turn on torch.compile in peers that support it."""

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def image_files(self) -> list[Path]:
        return sorted(p for p in self.images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.image_files) // self.batch_size)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A command, and a reader for its progress output."""

    name: str
    command: Sequence[str]
    weights: Path
    """File or folder of the finished LoRA."""
    steps_done: Callable[[str], int | None]
    """Returns the number of finished steps from a line of output, or None."""
    environment: dict[str, str] = field(default_factory=dict)


def ours(job: Job) -> Program:
    """This project's local command, with its default settings and without previews."""
    out = _fresh(job.scratch / "ours")
    epochs = -(-job.steps // job.steps_per_epoch)
    options = {
        "--out": out,
        "--base-model": job.base,
        "--device": job.device,
        "--epochs": epochs,
        "--batch-size": job.batch_size,
        "--rank": job.rank,
        "--resolution": job.resolution,
        "--validation-epochs": 0,
        "--checkpoint-every": epochs,
        "--preview-share": 0,
    }
    command = [sys.executable, "-m", "entrypoints.train", str(job.images), *_flat(options)]

    def steps_done(line: str) -> int | None:
        found = re.search(r"epoch (\d+)/\d+ \(", line)
        return int(found[1]) * job.steps_per_epoch if found else None

    return Program(
        name="this project", command=command, weights=out / "models", steps_done=steps_done
    )


def sd_scripts(job: Job, checkout: Path, python: str, *, stub_torchvision: bool) -> Program:
    """kohya's ``train_network.py``: cached latents, sdpa, bfloat16 on a GPU.

    It supports SD 1.x's own shapes only, so ``job.base`` must have these. It reads the tokenizer
    of ``openai/clip-vit-large-patch14`` from its cache, so the base's tokenizer is copied there.
    """
    out = _fresh(job.scratch / "sd-scripts")
    images = _fresh(out / "images" / "1_style")
    for image in job.image_files:
        shutil.copy(image, images)
        shutil.copy(image.with_suffix(".txt"), images)
    tokenizers = out / "tokenizers"
    tokenizer = tokenizers / "openai_clip-vit-large-patch14"
    shutil.copytree(job.base / "tokenizer", tokenizer)
    _write_vocabulary(tokenizer)
    options = {
        "--pretrained_model_name_or_path": job.base,
        "--train_data_dir": images.parent,
        "--caption_extension": ".txt",
        "--output_dir": out,
        "--output_name": "style",
        "--save_model_as": "safetensors",
        "--network_module": "networks.lora",
        "--network_dim": job.rank,
        "--network_alpha": job.rank,
        "--resolution": job.resolution,
        "--train_batch_size": job.batch_size,
        "--max_train_steps": job.steps,
        "--mixed_precision": "bf16" if job.on_cuda else "no",
        "--optimizer_type": "AdamW",
        "--learning_rate": "1e-4",
        "--lr_scheduler": "cosine",
        "--seed": 0,
        "--max_data_loader_n_workers": 2 if job.on_cuda else 0,
        "--tokenizer_cache_dir": tokenizers,
    }
    switches = ["--network_train_unet_only", "--cache_latents", "--sdpa"]
    if job.on_cuda:
        options["--optimizer_args"] = "fused=True"
        switches.append("--persistent_data_loader_workers")
    if job.compiled:
        options["--dynamo_backend"] = "inductor"
        switches.append("--torch_compile")
    script = checkout / "train_network.py"
    command = [*_python(python, script, stub_torchvision), *_flat(options), *switches]
    return Program(
        name="sd-scripts",
        command=command,
        weights=out / "style.safetensors",
        steps_done=lambda line: _tqdm_count(line, "steps:"),
        environment={"HF_HUB_OFFLINE": "1"},
    )


def diffusers_example(job: Job, script: Path, python: str, *, stub_torchvision: bool) -> Program:
    """diffusers' ``train_text_to_image_lora.py``: bfloat16 and TF32 on a GPU."""
    out = _fresh(job.scratch / "diffusers-example")
    images = _fresh(out / "images")
    with (images / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for image in job.image_files:
            shutil.copy(image, images)
            caption = image.with_suffix(".txt").read_text("utf-8").strip()
            metadata.write(json.dumps({"file_name": image.name, "text": caption}) + "\n")
    options = {
        "--pretrained_model_name_or_path": job.base,
        "--train_data_dir": images,
        "--output_dir": out / "style",
        "--resolution": job.resolution,
        "--train_batch_size": job.batch_size,
        "--rank": job.rank,
        "--max_train_steps": job.steps,
        "--checkpointing_steps": job.steps + 1,
        "--learning_rate": "1e-4",
        "--lr_scheduler": "cosine",
        "--lr_warmup_steps": 0,
        "--seed": 0,
        "--dataloader_num_workers": 2 if job.on_cuda else 0,
    }
    switches = ["--center_crop"]
    environment = {"HF_HUB_OFFLINE": "1"}
    if job.on_cuda:
        options["--mixed_precision"] = "bf16"
        switches.append("--allow_tf32")
    if job.compiled:
        environment["ACCELERATE_DYNAMO_BACKEND"] = "inductor"
    command = [*_python(python, script, stub_torchvision), *_flat(options), *switches]
    return Program(
        name="diffusers example",
        command=command,
        weights=out / "style" / "pytorch_lora_weights.safetensors",
        steps_done=lambda line: _tqdm_count(line, "Steps:"),
        environment=environment,
    )


def _write_vocabulary(tokenizer: Path) -> None:
    """Write the two files that sd-scripts' older transformers reads, from ``tokenizer.json``."""
    file = tokenizer / "tokenizer.json"
    if not file.exists() or (tokenizer / "vocab.json").exists():
        return
    model = json.loads(file.read_text("utf-8"))["model"]
    (tokenizer / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")


def _python(python: str, script: Path, stub_torchvision: bool) -> list[str]:
    launcher = [str(LAUNCHER)] if stub_torchvision else []
    return [python, *launcher, str(script)]


def _flat(options: dict[str, object]) -> list[str]:
    return [str(part) for pair in options.items() for part in pair]


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _tqdm_count(line: str, label: str) -> int | None:
    """The step count of a tqdm bar such as ``steps:  15%|#5  | 3/20 [00:04<00:20, ...]``."""
    found = re.search(rf"{label}.*\| (\d+)/\d+ \[", line)
    return int(found[1]) if found else None
