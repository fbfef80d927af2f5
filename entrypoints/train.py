"""Train a style from a folder of images, without a broker, bucket or backend.

Runs the worker's use case with folders in place of S3. See `--help`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from adapters.images.folder import find_images, passed_over
from domain.errors import UserError
from domain.limits import IntRange, InvalidParameter
from domain.parameters import RequestedParameters
from entrypoints.cli import CommandParser, explain, run_command
from entrypoints.exit_codes import EXIT_FAILED, EXIT_USAGE
from entrypoints.options import (
    add_caption_options,
    add_parameter_options,
    add_style_options,
    given_parameters,
    option_of,
    path,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from entrypoints.bootstrap import Container

T = TypeVar("T")

ONLY_FOR_TRYING = (
    "is for trial runs only: the style will not load in Stable Diffusion 1.5. To train one that "
    "does, give Stable Diffusion 1.5 as --base-model: its folder, its .safetensors file, or its "
    "hub name stable-diffusion-v1-5/stable-diffusion-v1-5"
)

PREVIEW_STEPS = IntRange(1, 1000)
"""A sampler cannot take more steps than Stable Diffusion's noise schedule has."""
EXPORT_OPTIONS = {"images", "out", "export", "json", "debug"}
"""The options that have an effect with ``--export``."""
EPILOG = """\
examples:
  python -m entrypoints.train images --out styles/watercolour
  python -m entrypoints.train images --out out --epochs 200 --trigger-word mystyle
  python -m entrypoints.train images --out out --base-model model.safetensors
  python -m entrypoints.train --export peft models/style_1.safetensors --out converted

An image's caption is the file <name>.txt beside it; --caption-model creates the missing ones.
Ctrl-C saves a checkpoint; run the same command to resume from it.

--export converts a finished style to the format of diffusers, kohya (AUTOMATIC1111, ComfyUI) or
PEFT instead of training one; the source may have any of these formats.

With --json, standard output is one JSON object with the outcome and the paths of the results, or
with the reason for an error; messages for people go to standard error. NO_COLOR=1 turns off
colours.

exit codes: 0 the style is ready, 1 training failed, 2 the input is wrong, 130 interrupted
"""


def build_parser() -> CommandParser:
    """The command line."""
    parser = _Parser(
        "train",
        # The default usage would print all options before every error.
        usage="%(prog)s (images | --export FORMAT style) --out OUT [options]",
        description="Train a Stable Diffusion style (LoRA) from a folder of images.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "images",
        type=path,
        help="folder with JPEG, PNG, WebP or AVIF images; with --export a style's file or folder",
    )
    parser.add_argument("--out", type=path, required=True, help="folder for the results")
    parser.add_argument(
        "--repeats-from-folders",
        action="store_true",
        help="use the images in folders named like 10_style, each 10 times per epoch",
    )
    add_style_options(parser)
    add_caption_options(parser)
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
    parser.add_argument(
        "--base-model",
        metavar="NAME",
        help="diffusers folder, .safetensors checkpoint or hub name (default: Stable Diffusion "
        "1.5 if a GPU and the hub are available, else the small base model)",
    )
    parser.add_argument(
        "--base-model-config",
        type=path,
        metavar="DIR",
        help="configuration folder of a single-file base model, if the hub cannot be reached",
    )
    parser.add_argument(
        "--device",
        help="cuda, cuda:1, cpu, or several GPUs such as cuda:0,cuda:1 (default: the GPU if there "
        "is one)",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=int,
        metavar="N",
        help="epochs between checkpoints (default: CHECKPOINT_EVERY, else 10)",
    )
    parser.add_argument(
        "--preview-share",
        type=float,
        metavar="SHARE",
        help="share of the training time for previews at checkpoints; 0: no previews, even in the "
        "report (default: PREVIEW_SHARE, else 0.05)",
    )
    parser.add_argument(
        "--preview-steps",
        type=int,
        metavar="N",
        help="denoising steps of a preview; fewer are faster (default: 20)",
    )
    parser.add_argument(
        "--export",
        choices=["diffusers", "kohya", "peft"],
        help="convert a finished style to this format, in the folder --out",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    add_parameter_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(build_parser(), _run, argv)


def command() -> NoReturn:
    """Run the command and exit, even while the base model is still being loaded on its thread."""
    os._exit(main())  # ``sys.exit`` would wait for the thread


class _Parser(CommandParser):
    """A parser that prints errors as JSON with ``--json``."""

    _as_json = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._as_json = "--json" in (sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if self._as_json:
            _print_json({"result": "refused", "message": message})
        super().error(message)


def _print_json(outcome: dict[str, Any]) -> None:
    print(json.dumps(outcome, indent=2))


def _run(arguments: argparse.Namespace) -> int:
    carry_out = _export if arguments.export else _train
    try:
        code, outcome = carry_out(arguments)
    except (Exception, KeyboardInterrupt) as error:
        if arguments.json:
            _print_json(_broken_off(error))
        raise
    if arguments.json:
        _print_json(outcome)
    return code


def _broken_off(error: BaseException) -> dict[str, Any]:
    if not isinstance(error, Exception):
        return {"result": "interrupted", "message": None}
    code, lines = explain(error) or (EXIT_FAILED, [f"{type(error).__name__}: {error}"])
    result = "refused" if code == EXIT_USAGE else "failed"
    return {"result": result, "message": "\n".join(lines)}


def _export(arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    default_of = build_parser().get_default
    given = [name for name, value in vars(arguments).items() if value != default_of(name)]
    if ignored := set(given) - EXPORT_OPTIONS:
        raise UserError(f"{option_of(min(ignored))}: has no effect with --export; leave it out")

    from adapters.lora_files.convert import convert
    from entrypoints import local_run

    local_run.check_writable(arguments.out)
    written, warnings = convert(arguments.images, arguments.export, arguments.out)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not arguments.json:
        print("\n".join(map(str, written)))
    return 0, {"result": "converted", "files": [str(path) for path in written]}


def _train(arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    requested = RequestedParameters(given_parameters(arguments))
    if arguments.style_id < 1:
        raise InvalidParameter("style_id", arguments.style_id, "give 1 or more")
    if arguments.preview_steps is not None:
        PREVIEW_STEPS.check("preview_steps", arguments.preview_steps)

    from adapters.console.image_notes import caption_notes, cropping_notes, image_notes
    from adapters.diffusion.base.names import check_name
    from entrypoints import local_run

    if arguments.base_model is not None:
        check_name(arguments.base_model)  # before torch loads
    local_run.check_optimizer(requested)
    names = find_images(arguments.images, repeats_from_folders=arguments.repeats_from_folders)
    local_run.check_out(arguments.out, arguments.images)

    label = local_run.label_of(arguments)
    initial = local_run.initial_lora(requested)
    container = local_run.build_container(arguments, label, initial)
    loaded = in_background(container.base_model)  # its libraries take seconds to import
    images = local_run.inspect(names, container.blobs(), container.inspector(), container.config())
    suffixes = container.config().caption_suffixes
    unused = passed_over(arguments.images, names, besides=arguments.out, suffixes=suffixes)
    settings = container.settings()
    captions = caption_notes(
        images,
        caption_model=settings.caption_model,
        trigger_word=bool(requested.named.get("trigger_word")),
        tags=bool(arguments.tags),
    )
    _print_notes(container, [*image_notes(images, unused), *captions])

    base = loaded()
    parameters = requested.resolve(
        image_count=sum(image.repeats for image in images.usable),
        native_resolution=base.native_resolution,
    )
    if initial is not None:
        parameters = initial.with_own_dimensions(parameters)
    task = local_run.describe_task(
        arguments, requested, parameters, names, images, base, label, initial, settings
    )
    _print_notes(container, cropping_notes(images, parameters.resolution))
    if not base.is_sd15:
        _print_notes(container, [f"the base model {base.name} {ONLY_FOR_TRYING}"])
    return local_run.run(task, parameters, container, arguments.out)


def in_background(call: Callable[[], T]) -> Callable[[], T]:
    """Start a slow call on its own thread; return a function that waits for its result."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(call)
    executor.shutdown(wait=False)
    return future.result


def _print_notes(container: Container, notes: Iterable[str]) -> None:
    from adapters.common.text import say

    for note in notes:
        say(container.console(), note, "yellow")


if __name__ == "__main__":
    command()
