"""Make the small base model from scratch: `python -m assets.pretrain --out assets/small_base`.

The script draws the images itself, so nothing is downloaded. The same seed, steps and torch on the
same kind of processor give the same result.
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
from diffusers import AutoencoderKL, StableDiffusionPipeline

from assets.architecture import NATIVE_SIDE, build_pipeline
from assets.drawing import compose_scene, describe
from assets.pool import draw_scenes, draw_textures
from assets.store import Provenance, store_base
from assets.train_autoencoder import train_autoencoder
from assets.train_text_encoder import train_text_encoder
from assets.train_unet import (
    LatentBucket,
    Stage,
    encode,
    encode_captions,
    tokenize,
    train_unet,
)
from assets.vocabulary import write_vocabulary

_SQUARE = (NATIVE_SIDE, NATIVE_SIDE)
_VAE_SCENES, _VAE_TEXTURES = 2000, 5000
_TEXT_SCENES = 20_000
_SMALL_SCENES = {(NATIVE_SIDE // 2, NATIVE_SIDE // 2): 8000}
_SCENES = {_SQUARE: 2500, (144, 112): 250, (112, 144): 250}
"""Number of images of each width and height for the UNet's training, first stage and later."""
_SMALL_SHARE = 5 / 7
"""Share of the UNet's steps on small images, which are fast and teach the words' meanings."""
_THREADS = 1
"""Threads split sums, which changes rounding. One thread gives the same sums on any machine, and
loses the least speed if other processes run."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The command line's options."""

    out: Path
    seed: int
    start_from: Path | None
    vae_steps: int
    text_steps: int
    unet_steps: int
    snapshots: Path | None

    @property
    def command(self) -> str:
        """The command that makes the same base."""
        start = f"--vae-steps {self.vae_steps}"
        if self.start_from is not None:
            start = f"--start-from {self.start_from}"
        return (
            f"python -m assets.pretrain --seed {self.seed} {start} "
            f"--text-steps {self.text_steps} --unet-steps {self.unet_steps}"
        )


def main() -> None:
    """Pretrain and store the base; `--out` is replaced only after everything has succeeded."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = _parse()
    started = time.monotonic()
    torch.set_num_threads(_THREADS)
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary = Path(scratch) / "tokenizer"
        if options.start_from is None:
            write_vocabulary(_captions(options.seed), vocabulary)
        else:
            shutil.copytree(options.start_from / "tokenizer", vocabulary)
        pipeline = build_pipeline(vocabulary)
        _train(pipeline, options)
        provenance = Provenance(
            command=options.command,
            minutes=(time.monotonic() - started) / 60,
            torch_version=torch.__version__,
            start=options.start_from and str(options.start_from),
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
    parser.add_argument(
        "--start-from", type=Path, help="a base to take vocabulary and autoencoder from"
    )
    parser.add_argument("--vae-steps", type=int, default=2400)
    parser.add_argument("--text-steps", type=int, default=1500)
    parser.add_argument("--unet-steps", type=int, default=3500)
    parser.add_argument("--snapshots", type=Path, help="folder for the UNet's intermediate states")
    return Options(**vars(parser.parse_args()))


def _captions(seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [describe(compose_scene(rng)) for _ in range(3000)]


def _train(pipeline: StableDiffusionPipeline, options: Options) -> None:
    if options.start_from is not None:
        pipeline.vae = AutoencoderKL.from_pretrained(options.start_from / "vae").float()
    else:
        logger.info("drawing %d images for the autoencoder", _VAE_SCENES + _VAE_TEXTURES)
        scenes, _ = draw_scenes(_VAE_SCENES, _SQUARE, options.seed)
        textures = draw_textures(_VAE_TEXTURES, _SQUARE, options.seed)
        rng = np.random.default_rng(options.seed)
        train_autoencoder(pipeline.vae, np.concatenate([scenes, textures]), options.vae_steps, rng)
    generator = torch.Generator().manual_seed(options.seed)
    rng = np.random.default_rng(options.seed + 2)
    compositions = [compose_scene(rng) for _ in range(_TEXT_SCENES)]
    tokens = tokenize(pipeline, [describe(scene) for scene in compositions])
    train_text_encoder(pipeline.text_encoder, tokens, compositions, options.text_steps, generator)
    small, full = (
        [_encode_scenes(pipeline, size, count, options.seed + 1) for size, count in sizes.items()]
        for sizes in (_SMALL_SCENES, _SCENES)
    )
    pipeline.vae.register_to_config(scaling_factor=1 / float(full[0].latents.std()))
    first = round(options.unet_steps * _SMALL_SHARE)
    stages = [Stage(small, first), Stage(full, options.unet_steps - first)]
    train_unet(pipeline, stages, generator, options.snapshots)


def _encode_scenes(
    pipeline: StableDiffusionPipeline, size: tuple[int, int], count: int, seed: int
) -> LatentBucket:
    logger.info("drawing and encoding %d scenes of %dx%d px", count, *size)
    images, captions = draw_scenes(count, size, seed)
    return LatentBucket(encode(pipeline.vae, images), encode_captions(pipeline, captions))


if __name__ == "__main__":
    main()
