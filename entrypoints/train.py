"""Train a style from a folder of pictures: no broker, no bucket, no backend.

The same use case as a worker's, with folders in place of S3. See `--help`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain.parameters import RequestedParameters
from entrypoints.cli import add_common_options, run_command
from entrypoints.exits import UsageError
from entrypoints.options import (
    add_parameter_options,
    add_style_options,
    named_parameters,
    option_of,
)
from entrypoints.picture_folder import find_pictures

if TYPE_CHECKING:
    from domain.picture import PictureSet

EPILOG = """\
examples:
  python -m entrypoints.train pictures --out styles/watercolour
  python -m entrypoints.train pictures --out out --epochs 200 --trigger-word mystyle
  python -m entrypoints.train pictures --out out --base-model model.safetensors
  python -m entrypoints.train --export peft models/style_1.safetensors --out converted

A caption may lie beside each picture as <name>.txt. Ctrl-C leaves a checkpoint, and the same
command goes on from it.

--export converts a finished style instead of training one, into the form of diffusers, kohya
(AUTOMATIC1111, ComfyUI) or PEFT; its source may be in any of them.

With --json, standard output is one JSON object that says how it ended and where everything is;
what is said to a person goes to standard error. NO_COLOR=1 leaves the colours out.

exit codes: 0 the style is ready, 1 training failed, 2 the input is wrong, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m entrypoints.train",
        description="Train a Stable Diffusion style (LoRA) from a folder of pictures.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "pictures",
        type=Path,
        help="folder with JPEG, PNG or WebP pictures; with --export a style, file or folder",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    add_style_options(parser)
    parser.add_argument(
        "--base-model",
        metavar="NAME",
        help="diffusers folder, .safetensors checkpoint or hub name (default: Stable Diffusion "
        "1.5 where a GPU and a hub are there, else the small base)",
    )
    parser.add_argument(
        "--base-model-config",
        type=Path,
        metavar="DIR",
        help="configuration folder of a single-file base model, where no hub can be reached",
    )
    parser.add_argument(
        "--device",
        help="cuda, cuda:1 or cpu; of cuda:0,cuda:1 each takes some of a step's pictures, with a "
        "batch size above 1 (default: the GPU if there is one)",
    )
    parser.add_argument(
        "--checkpoint-every", type=int, default=10, metavar="N", help="in epochs (default: 10)"
    )
    parser.add_argument(
        "--export",
        choices=["diffusers", "kohya", "peft"],
        help="convert a finished style into this form, into --out",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    add_parameter_options(parser)
    add_common_options(parser, script="style-train")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    return _export(arguments) if arguments.export else _train(arguments)


def _export(arguments: argparse.Namespace) -> int:
    named = named_parameters(arguments)
    if named:
        raise UsageError(f"{option_of(min(named))}: trains, and --export does not; leave it out")

    from entrypoints import export_style, local_run

    local_run.check_writable(arguments.out)
    for path in export_style.convert(arguments.pictures, arguments.export, arguments.out):
        print(path)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    requested = RequestedParameters(named_parameters(arguments))
    if arguments.style_id < 1:
        raise UsageError(f"--style-id {arguments.style_id}: give a positive number")
    if arguments.checkpoint_every < 1:
        raise UsageError(f"--checkpoint-every {arguments.checkpoint_every}: give 1 or more")

    from entrypoints import local_run

    local_run.check_optimizer(requested)
    local_run.check_device(arguments.device)
    names = find_pictures(arguments.pictures)
    local_run.check_writable(arguments.out)

    container = local_run.build_container(arguments)
    console = container.console()
    pictures = local_run.inspect(names, container)
    _tell_about(pictures, console)

    base = container.base_model()
    task = local_run.describe_task(arguments, requested, pictures, base)
    code, outcome = local_run.run(task, container, arguments.out)
    if arguments.json:
        print(json.dumps(outcome, indent=2))
    return code


def _tell_about(pictures: PictureSet, console: Any) -> None:
    for refused in pictures.refused:
        console.print(f"left out {refused.name}: {refused.reason}", style="yellow", markup=False)
    for pair in pictures.duplicates:
        kind = "the same as" if pair.exact else "nearly the same as"
        console.print(f"{pair.name} is {kind} {pair.of}", style="yellow", markup=False)


if __name__ == "__main__":
    sys.exit(main())
