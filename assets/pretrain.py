"""Make the small base model from nothing: `python -m assets.pretrain --out assets/small_base`.

The pictures are drawn by the script itself, so nothing is downloaded. With the same seed, steps
and torch on the same kind of processor the result is the same.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from assets.architecture import NATIVE_SIDE, build_pipeline
from assets.drawing import compose_scene, describe
from assets.pool import draw_scenes, draw_textures
from assets.store import Provenance, store_base
from assets.train_autoencoder import train_autoencoder
from assets.train_denoiser import LatentBucket, encode, tokenize, train_denoiser
from assets.vocabulary import write_vocabulary

_SQUARE = (NATIVE_SIDE, NATIVE_SIDE)
_VAE_SCENES, _VAE_TEXTURES = 2000, 5000
_DENOISER_SCENES = {_SQUARE: 8000, (144, 112): 1000, (112, 144): 1000}
"""How many pictures of each width and height the denoiser sees."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    out: Path
    seed: int
    vae_steps: int
    unet_steps: int


def main() -> None:
    """Pretrain and store the base; `--out` is replaced only when everything is done."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = _parse()
    started = time.monotonic()
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary = Path(scratch) / "tokenizer"
        write_vocabulary(_captions(options.seed), vocabulary)
        pipeline = build_pipeline(vocabulary)
        _train(pipeline, options)
        provenance = Provenance(
            command=f"python -m assets.pretrain --seed {options.seed} "
            f"--vae-steps {options.vae_steps} --unet-steps {options.unet_steps}",
            minutes=(time.monotonic() - started) / 60,
            torch_version=torch.__version__,
        )
        finished = Path(scratch) / "base"
        store_base(pipeline, vocabulary, finished, provenance)
        shutil.rmtree(options.out, ignore_errors=True)
        shutil.copytree(finished, options.out)
    logger.info("%s is ready", options.out)


def _parse() -> Options:
    parser = argparse.ArgumentParser(description="Pretrain the small base model.")
    parser.add_argument("--out", type=Path, default=Path("assets/small_base"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=2400)
    parser.add_argument("--unet-steps", type=int, default=2000)
    return Options(**vars(parser.parse_args()))


def _captions(seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [describe(compose_scene(rng)) for _ in range(3000)]


def _train(pipeline: StableDiffusionPipeline, options: Options) -> None:
    if options.vae_steps:
        logger.info("drawing %d pictures for the autoencoder", _VAE_SCENES + _VAE_TEXTURES)
        scenes, _ = draw_scenes(_VAE_SCENES, _SQUARE, options.seed)
        textures = draw_textures(_VAE_TEXTURES, _SQUARE, options.seed)
        rng = np.random.default_rng(options.seed)
        train_autoencoder(pipeline.vae, np.concatenate([scenes, textures]), options.vae_steps, rng)
    if options.unet_steps:
        buckets = []
        for size, count in _DENOISER_SCENES.items():
            logger.info("drawing and encoding %d scenes of %dx%d px", count, *size)
            pictures, captions = draw_scenes(count, size, options.seed + 1)
            latents = encode(pipeline.vae, pictures)
            buckets.append(LatentBucket(latents, tokenize(pipeline, captions)))
        scaling = 1 / float(buckets[0].latents.std())
        pipeline.vae.register_to_config(scaling_factor=scaling)
        generator = torch.Generator().manual_seed(options.seed)
        train_denoiser(pipeline, buckets, options.unet_steps, generator)


if __name__ == "__main__":
    main()
