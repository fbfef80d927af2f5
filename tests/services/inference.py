"""A stand-in for the platform's inference server: how it finds and loads a style.

Modelled on that server's observed behaviour. It reads ``gs://`` only, from its own bucket whatever
bucket the path names, and downloads every blob whose name begins with the folder's, without a
trailing slash. If it finds no style it draws without one, and reports success.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

from tests.services.gcs import Emulator

PREFIXES = ("gs://", "https://storage.googleapis.com/")
FILES = {".safetensors", ".json", ".bin", ".pt", ".pth"}


@dataclass
class InferenceServer:
    """Draws images with one base model and one style at a time."""

    pipeline: StableDiffusionPipeline
    emulator: Emulator
    bucket: str
    """The inference server's GCS_BUCKET_NAME."""

    @staticmethod
    def generator() -> torch.Generator:
        """The initial noise of every image."""
        return torch.Generator().manual_seed(7)

    def draw(self, model_path: str, prompt: str, *, size: int) -> NDArray[Any]:
        """An image, ``(height, width, 3)`` from 0 to 1."""
        with TemporaryDirectory() as folder, self._loaded(model_path, Path(folder)):
            drawn = self.pipeline(
                prompt,
                height=size,
                width=size,
                num_inference_steps=4,
                generator=self.generator(),
                output_type="np",
            )
        image: NDArray[Any] = drawn.images[0]
        return image

    @contextmanager
    def _loaded(self, model_path: str, folder: Path) -> Iterator[None]:
        if not self.download(model_path, folder):
            yield
        elif (folder / "adapter_config.json").exists():
            from peft import PeftModel

            unet = self.pipeline.unet
            # That server has a float16 model; PEFT loads an adapter in float32.
            wrapped = PeftModel.from_pretrained(unet, folder).to(unet.dtype)
            self.pipeline.unet = wrapped
            try:
                yield
            finally:
                self.pipeline.unet = wrapped.unload()
        else:
            self.pipeline.load_lora_weights(folder)
            yield

    def download(self, model_path: str, folder: Path) -> list[str]:
        """Download a style. Returns the files' names in ``folder``; empty if there is none."""
        prefix = next((p for p in PREFIXES if model_path.startswith(p)), None)
        if prefix is None:
            return []
        _, _, key = model_path.removeprefix(prefix).partition("/")
        path = PurePosixPath(key)
        start = str(path.parent if path.suffix in FILES else path)
        names = []
        for blob in self.emulator.client().list_blobs(self.bucket, prefix=start):
            name = blob.name[len(start) :].lstrip("/")
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            blob.download_to_filename(str(file))
            names.append(name)
        return names
