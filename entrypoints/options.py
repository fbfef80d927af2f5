"""Command-line options of a training. Standard library only, for a fast `--help`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from domain.parameters import (
    PARAMETER_NAMES,
    Delivery,
    LearningRateSchedule,
    LoraTargets,
    OptimizerName,
)


def path(text: str) -> Path:
    """Convert an option's text to a path. Rejects an empty text (an unset shell variable), which
    ``Path`` would turn into the current folder.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a path, or . for this folder")
    return Path(text)


def add_style_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--style-id`` and ``--tags``."""
    parser.add_argument("--style-id", type=int, default=1, help="the style's number (default: 1)")
    parser.add_argument(
        "--tags", type=_tags, default=(), help="keywords of the whole style, separated by commas"
    )


def add_caption_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--caption-model`` and ``--keep-style-words``."""
    parser.add_argument(
        "--caption-model",
        metavar="NAME",
        help="image-to-text model, a folder or hub name, that captions images without a caption "
        "(default: CAPTION_MODEL, else none)",
    )
    parser.add_argument(
        "--keep-style-words",
        action="store_true",
        help='keep words for the medium in those captions, such as "a painting of"',
    )


def add_caption_extension(parser: argparse.ArgumentParser) -> None:
    """Add ``--caption-extension``."""
    parser.add_argument(
        "--caption-extension", metavar="EXT", help="extension of the caption files (default: .txt)"
    )


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--name``, ``--author``, ``--license`` and ``--thumbnail``."""
    parser.add_argument(
        "--name", help="name of the style and its file (default: name of the --out folder)"
    )
    parser.add_argument("--author", metavar="TEXT", help="for the file's metadata")
    parser.add_argument("--license", metavar="TEXT", help="for the file's metadata")
    parser.add_argument(
        "--thumbnail",
        type=path,
        metavar="IMAGE",
        help="image for the file's metadata; a small copy is stored",
    )


def _tags(text: str) -> tuple[str, ...]:
    return tuple(tag.strip() for tag in text.split(",") if tag.strip())


def add_parameter_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for every training parameter; omitted options take their defaults."""
    group = parser.add_argument_group("training parameters")

    def add(name: str, help_text: str, **kind: Any) -> None:
        group.add_argument(name, help=help_text, default=argparse.SUPPRESS, **kind)

    add("--epochs", "passes over the images (default: 700 - 20 x images, 100 to 500)", type=int)
    add("--learning-rate", "peak learning rate (default: 1e-4, prodigy: 1)", type=float)
    add("--network-weights", "existing LoRA to start from: a file or folder", metavar="PATH")
    add("--dim-from-weights", "take rank and alpha from --network-weights", action="store_true")
    add("--train-text-encoder", "train the text encoder too", action="store_true")
    add(
        "--text-encoder-lr",
        "peak learning rate of the text encoder (default: --learning-rate)",
        type=float,
    )
    add("--batch-size", "images per step (default: 1)", type=int)
    add("--rank", "LoRA rank (default: 8)", type=int)
    add("--alpha", "LoRA alpha; the scale is alpha / rank (default: the rank)", type=float)
    add(
        "--lora-targets",
        "layers that get LoRA (default: attention)",
        choices=[str(targets) for targets in LoraTargets],
    )
    add("--lora-dropout", "dropout probability of a layer's inputs (default: 0)", type=float)
    add("--use-rslora", "scale by alpha / sqrt(rank), for high ranks", action="store_true")
    add(
        "--use-dora",
        "train magnitudes too (DoRA); only diffusers reads the file unconverted",
        action="store_true",
    )
    add(
        "--resolution",
        "side in pixels of a square; images get its area (default: the base model's)",
        type=int,
    )
    add("--seed", "random seed (default: 0)", type=int)
    add("--trigger-word", "word put before every caption", metavar="WORD")
    add(
        "--sample-prompt",
        "prompt for the previews, repeatable (default: the first captions)",
        dest="sample_prompts",
        action="append",
        metavar="PROMPT",
    )
    add(
        "--optimizer",
        "adamw8bit needs bitsandbytes, prodigy prodigyopt (default: adamw)",
        choices=[str(optimizer) for optimizer in OptimizerName],
    )
    add(
        "--lr-scheduler",
        "learning rate after the warm-up (default: cosine)",
        choices=[str(schedule) for schedule in LearningRateSchedule],
    )
    add("--lr-warmup-steps", "steps of warm-up (default: steps / 20, at most 100)", type=int)
    add("--lr-num-cycles", "cycles of cosine_with_restarts (default: 1)", type=int)
    add("--lr-power", "power of the polynomial schedule (default: 1)", type=float)
    add("--weight-decay", "decoupled weight decay (default: 0.01)", type=float)
    add("--max-grad-norm", "gradients are clipped to this norm (default: 1)", type=float)
    add("--snr-gamma", "min-SNR weighting, commonly 5 (default: off)", type=float)
    add("--noise-offset", "per-channel noise shift, commonly 0.05 (default: 0)", type=float)
    add("--random-flip", "mirror each image with probability 0.5", action="store_true")
    add(
        "--caption-dropout", "probability of training without the caption (default: 0)", type=float
    )
    add("--shuffle-caption", "shuffle the tags of each caption", action="store_true")
    add(
        "--keep-tokens", "number of first tags neither shuffled nor dropped (default: 0)", type=int
    )
    add("--caption-tag-dropout-rate", "probability of dropping a tag (default: 0)", type=float)
    add("--caption-prefix", "text before every caption", metavar="TEXT")
    add("--caption-suffix", "text after every caption", metavar="TEXT")
    add("--max-token-length", "caption tokens that are read: 75, 150, 225 (default: 75)", type=int)
    add("--validation-split", "share of images held out (default: 0)", type=float)
    add(
        "--validation-epochs",
        "epochs between measurements of the loss; 0: none (default: 10)",
        type=int,
    )
    add(
        "--deliver",
        "epoch that becomes the style (default: auto)",
        choices=[str(choice) for choice in Delivery],
    )


def named_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """The training parameters given on the command line."""
    return {name: value for name, value in vars(arguments).items() if name in PARAMETER_NAMES}


def option_of(parameter: str) -> str:
    """The option that sets a parameter, for error messages."""
    name = "sample_prompt" if parameter == "sample_prompts" else parameter
    return "--" + name.replace("_", "-")
