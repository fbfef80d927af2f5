"""Command-line options of a training. Standard library only, for a fast `--help`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from domain.limits import Boolean, Choice, FloatRange, IntRange, Limit, Prompts
from domain.parameters import LIMITS, PARAMETER_NAMES

MAX_EXTENSION = 20
"""Most characters of an extension of caption files."""


def path(text: str) -> Path:
    """Convert an option's text to a path, which need not exist.

    Rejects an empty text (an unset shell variable), which ``Path`` would turn into the current
    folder, and a path that the system does not allow: too long, a loop of links, not permitted.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a path, or . for this folder")
    found = Path(text)
    try:
        found.stat()
    except (FileNotFoundError, NotADirectoryError):
        return found
    except OSError as error:
        reason = error.strerror or str(error)
        raise argparse.ArgumentTypeError(f"{text}: {reason}; give another path") from None
    return found


def add_style_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--style-id``, ``--tags`` and ``--caption-extension``."""
    parser.add_argument("--style-id", type=int, default=1, help="the style's number (default: 1)")
    parser.add_argument(
        "--tags", type=_tags, default=(), help="keywords of the whole style, separated by commas"
    )
    parser.add_argument(
        "--caption-extension",
        type=_extension,
        metavar="EXT",
        help="extension of the caption files (default: .txt)",
    )


def add_caption_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--caption-model`` and ``--keep-style-words``."""
    parser.add_argument(
        "--caption-model",
        metavar="NAME",
        help="image-to-text model, a folder or hub name, that captions images without a caption "
        "(default: CAPTION_MODEL)",
    )
    parser.add_argument(
        "--keep-style-words",
        action="store_true",
        default=None,
        help='keep words for the medium in those captions, such as "a painting of"',
    )


def _extension(text: str) -> str:
    """Check an extension of caption files, with or without its dot."""
    if not text.strip(".") or "/" in text or len(text) > MAX_EXTENSION:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an extension; give one such as .caption"
        )
    return text


def _tags(text: str) -> tuple[str, ...]:
    return tuple(tag.strip() for tag in text.split(",") if tag.strip())


_HELP = {
    "epochs": "passes over the images (default: 700 - 20 x images, 100 to 500)",
    "learning_rate": "peak learning rate (default: 1e-4, prodigy: 1)",
    "network_weights": "existing LoRA to start from: a file or folder; in a task "
    "s3://bucket/key or gs://bucket/key",
    "dim_from_weights": "take rank and alpha from --network-weights",
    "train_text_encoder": "train the text encoder too",
    "text_encoder_lr": "peak learning rate of the text encoder (default: --learning-rate)",
    "batch_size": "images per step (default: 1)",
    "rank": "LoRA rank (default: 8)",
    "alpha": "LoRA alpha; the scale is alpha / rank (default: the rank)",
    "lora_targets": "layers that get LoRA (default: attention)",
    "lora_dropout": "dropout probability of a layer's inputs (default: 0)",
    "use_rslora": "scale by alpha / sqrt(rank), for high ranks",
    "use_dora": "train magnitudes too (DoRA); only diffusers reads the file unconverted",
    "resolution": "side in pixels of a square; images get its area (default: the base model's)",
    "seed": "random seed (default: 0)",
    "trigger_word": "word put before every caption",
    "sample_prompts": "prompt for the previews, repeatable (default: the first captions)",
    "optimizer": "adamw8bit needs bitsandbytes, prodigy prodigyopt (default: adamw)",
    "lr_scheduler": "learning rate after the warm-up (default: cosine)",
    "lr_warmup_steps": "steps of warm-up (default: steps / 20, at most 100)",
    "lr_num_cycles": "cycles of cosine_with_restarts (default: 1)",
    "lr_power": "power of the polynomial schedule (default: 1)",
    "weight_decay": "decoupled weight decay (default: 0.01)",
    "max_grad_norm": "gradients are clipped to this norm (default: 1)",
    "snr_gamma": "min-SNR weighting, commonly 5 (default: off)",
    "noise_offset": "per-channel noise shift, commonly 0.05 (default: 0)",
    "random_flip": "mirror each image with probability 0.5",
    "caption_dropout": "probability of training without the caption (default: 0)",
    "shuffle_caption": "shuffle the tags of each caption",
    "keep_tokens": "number of first tags neither shuffled nor dropped (default: 0)",
    "caption_tag_dropout_rate": "probability of dropping a tag (default: 0)",
    "caption_prefix": "text before every caption",
    "caption_suffix": "text after every caption",
    "max_token_length": "caption tokens that are read: 75, 150, 225 (default: 75)",
    "validation_split": "share of images held out (default: 0)",
    "validation_epochs": "epochs between measurements of the loss; 0: none (default: 10)",
    "deliver": "epoch that becomes the style (default: auto)",
}
"""Help text of each training parameter, in the order of ``--help``."""
_METAVARS = {
    "network_weights": "PATH",
    "trigger_word": "WORD",
    "sample_prompts": "PROMPT",
    "caption_prefix": "TEXT",
    "caption_suffix": "TEXT",
}


def add_parameter_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for every training parameter; omitted options take their defaults."""
    group = parser.add_argument_group("training parameters")
    for name, text in _HELP.items():
        kind = _conversion(LIMITS[name], _METAVARS.get(name))
        group.add_argument(
            option_of(name), dest=name, help=text, default=argparse.SUPPRESS, **kind
        )


def _conversion(limit: Limit, metavar: str | None) -> dict[str, Any]:
    """How argparse converts the text of an option to a value within this limit."""
    match limit:
        case Boolean():
            return {"action": "store_true"}
        case Choice():
            return {"choices": [str(name) for name in limit.names]}
        case IntRange():
            return {"type": int}
        case FloatRange():
            return {"type": float}
        case Prompts():
            return {"action": "append", "metavar": metavar}
    return {"metavar": metavar}


def given_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """The training parameters given on the command line."""
    return {name: value for name, value in vars(arguments).items() if name in PARAMETER_NAMES}


def option_of(parameter: str) -> str:
    """The option that sets a parameter, for error messages."""
    name = "sample_prompt" if parameter == "sample_prompts" else parameter
    return "--" + name.replace("_", "-")
