"""Make the small captioner: `python -m assets.train_captioner --out assets/small_captioner`.

It is an image encoder (SegFormer, arXiv:2105.15203) with a text decoder (BERT), transformers'
VisionEncoderDecoderModel, trained on images that the project draws. The same seed and steps, on
the same version of torch and kind of processor, give the same weights.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from PIL import Image
from torch import Tensor
from transformers import (
    BertConfig,
    BertTokenizer,
    SegformerConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)

from assets.drawing import compose_scene, describe, draw_scene, draw_styled_scene
from assets.store import CHECKSUMS, checksums

SIDE = 64
"""Side in pixels of the square to which the captioner scales every image."""
_SIZES = ((SIDE, SIDE),) * 8 + ((72, 54), (54, 72))
"""Width and height of the training images, in turn: as in a typical user's folder."""
_BATCH_SIZE = 64
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
"""Tokens that are no words; a caption starts with [DEC] and ends with [SEP]."""
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation that the channels are normalised with, those of CLIP."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledImages:
    """Training images (count, SIDE, SIDE, 3) with the tokens (count, length) of their captions."""

    pixels: Tensor
    tokens: Tensor
    may_mirror: Tensor
    """Whether the caption also holds for the mirrored image."""


def main() -> None:
    """Train and store the captioner; `--out` is replaced only after everything has succeeded."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = _parse()
    torch.set_num_threads(1)  # several threads would change the rounding of sums
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "captioner"
        write_processor(folder)
        tokenizer = BertTokenizer.from_pretrained(folder)
        model = build_captioner(tokenizer)
        if options.start_from is not None:
            model = VisionEncoderDecoderModel.from_pretrained(options.start_from).float()
        images = draw_images(tokenizer, options.seed, options.plain, options.styled)
        generator = torch.Generator().manual_seed(options.seed)
        train_captioner(model, images, options.steps, options.learning_rate, generator)
        store_captioner(model, folder, _commands(options))
        shutil.rmtree(options.out, ignore_errors=True)
        shutil.copytree(folder, options.out)
    logger.info("%s is ready", options.out)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the small captioner.")
    parser.add_argument("--out", type=Path, default=Path("assets/small_captioner"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", type=int, default=3000, help="number of plain images")
    parser.add_argument("--styled", type=int, default=12_000, help="number of styled images")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--start-from", type=Path, help="a captioner to train further")
    return parser.parse_args()


def _commands(options: argparse.Namespace) -> list[str]:
    """The commands that make the same captioner, including those of the one it started from."""
    command = (
        f"python -m assets.train_captioner --seed {options.seed} --plain {options.plain} "
        f"--styled {options.styled} --steps {options.steps} "
        f"--learning-rate {options.learning_rate} --out {options.out}"
    )
    if options.start_from is None:
        return [command]
    readme = (options.start_from / "README.md").read_text("utf-8")
    earlier = [line.strip() for line in readme.splitlines() if line.startswith("    python")]
    return [*earlier, f"{command} --start-from {options.start_from}"]


def write_processor(folder: Path) -> None:
    """Write the vocabulary, one token for each word of the captions, and the images' format."""
    rng = np.random.default_rng(0)
    captions = [describe(compose_scene(rng)) for _ in range(3000)]
    words = sorted({word for caption in captions for word in caption.split()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*_SPECIAL, *words]) + "\n", "utf-8")
    texts = {"tokenizer_class": "BertTokenizer", "bos_token": "[DEC]", "model_max_length": 32}
    images = {
        "image_processor_type": "BlipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
    }
    for name, content in (("tokenizer_config", texts), ("preprocessor_config", images)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def build_captioner(tokenizer: BertTokenizer) -> VisionEncoderDecoderModel:
    """The untrained model: images (3, 64, 64) to 64 states of width 96, and these to words.

    The encoder's overlapping convolutions learn shapes from far fewer images than BLIP's vision
    transformer, which cuts an image into separate patches.
    """
    width = 96
    encoder = SegformerConfig(
        num_encoder_blocks=3,
        depths=[1, 1, 1],
        hidden_sizes=[32, 64, width],
        patch_sizes=[7, 3, 3],
        strides=[4, 2, 1],
        sr_ratios=[4, 2, 1],
        num_attention_heads=[1, 2, 4],
        mlp_ratios=[2, 2, 4],
        drop_path_rate=0.0,
        reshape_last_stage=False,
        hidden_size=width,
    )
    decoder = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        add_cross_attention=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder,
        decoder,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
    )
    return VisionEncoderDecoderModel(config)


def draw_images(tokenizer: BertTokenizer, seed: int, plain: int, styled: int) -> LabelledImages:
    """Draw plain and styled scenes, scaled to the captioner's square as its processor does."""
    rng = np.random.default_rng([seed, SIDE])
    pixels, captions = [], []
    for draw, count in ((draw_scene, plain), (draw_styled_scene, styled)):
        logger.info("drawing %d images", count)
        for size in islice(cycle(_SIZES), count):
            image, caption = draw(rng, size)
            pixels.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
            captions.append(caption)
    return LabelledImages(
        torch.from_numpy(np.stack(pixels)),
        tokenize(tokenizer, captions),
        torch.tensor(["left" not in caption for caption in captions]),
    )


def tokenize(tokenizer: BertTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids (captions, length): the words, [SEP], padding."""
    tokens: Tensor = tokenizer(list(captions), padding=True, return_tensors="pt").input_ids
    return tokens[:, 1:]


def train_captioner(
    model: VisionEncoderDecoderModel,
    images: LabelledImages,
    steps: int,
    learning_rate: float,
    generator: torch.Generator,
) -> None:
    """Minimise the cross-entropy of each caption's next token."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    pad = model.config.pad_token_id
    model.train()
    for step in range(steps):
        chosen = torch.randint(len(images.pixels), (_BATCH_SIZE,), generator=generator)
        tokens = images.tokens[chosen]
        loss = model(
            pixel_values=_augmented(images, chosen, generator),
            labels=tokens.masked_fill(tokens == pad, -100),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99 or step in (0, steps - 1):
            logger.info("step %d of %d: loss %.4f", step + 1, steps, float(loss.detach()))
    model.eval()


def _augmented(images: LabelledImages, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Normalised images (batch, 3, SIDE, SIDE): some mirrored, each a little shifted and noisy."""
    batch = images.pixels[chosen].permute(0, 3, 1, 2).float() / 255
    mirror = images.may_mirror[chosen] & (torch.rand(len(chosen), generator=generator) < 0.5)
    batch = torch.where(mirror[:, None, None, None], batch.flip(3), batch)
    down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
    padded = torch.nn.functional.pad(batch, (2, 2, 2, 2), mode="replicate")
    batch = padded[:, :, 2 + down : 2 + down + SIDE, 2 + right : 2 + right + SIDE]
    light = 1 + 0.04 * torch.randn(len(chosen), 1, 1, 1, generator=generator)
    noise = 0.02 * torch.randn(batch.shape, generator=generator)
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
    return ((batch * light + noise).clamp(0, 1) - mean) / std


def store_captioner(
    model: VisionEncoderDecoderModel, folder: Path, commands: Sequence[str]
) -> None:
    """Write the weights in fp16 beside the processor's files, with a README and checksums."""
    model.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
    (folder / "README.md").write_text(_readme(model, commands), "utf-8")
    (folder / CHECKSUMS).write_text(checksums(folder), "utf-8")


def _readme(model: VisionEncoderDecoderModel, commands: Sequence[str]) -> str:
    lines = "\n".join(f"    {command}" for command in commands)
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"""# Small captioner

A transformers' `VisionEncoderDecoderModel` (SegFormer and BERT) with {count:,} parameters. It
describes one kind of image: the coloured shapes that `assets/drawing.py` draws, plain or in the
demo's style, such as "a large red circle on a blue background". It stands in for a real captioner
in tests and in the demo.

Weights are in fp16. They were made on a CPU, with torch {torch.__version__}, by

{lines}

`sha256sum -c SHA256SUMS` checks the files.
"""


if __name__ == "__main__":
    main()
