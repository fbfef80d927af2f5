"""Write captions beside the images of a folder that have none, for a person to correct.

See `--help`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from signal import SIG_DFL

from adapters.images.folder import find_caption, find_images, unusable_captions
from domain.errors import UserError
from entrypoints.cli import CommandParser, run_command
from entrypoints.exit_codes import EXIT_FAILED
from entrypoints.options import add_caption_options, path

EPILOG = """\
examples:
  python -m entrypoints.caption images --caption-model Salesforce/blip-image-captioning-base
  python -m entrypoints.train images --out out

Correct the captions between the two commands. Words for the medium, such as "a painting of", are
left out of the captions, so that the style learns them.

exit codes: 0 every usable image has a caption, 1 one has none, 2 wrong input, 130 interrupted
"""


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        "caption",
        description="Caption each image that has no caption, in the file <name>.txt beside it.",
        epilog=EPILOG,
    )
    parser.add_argument("images", type=path, help="folder with JPEG, PNG, WebP or AVIF images")
    add_caption_options(parser)
    parser.add_argument("--device", help="cuda, cuda:1 or cpu (default: the GPU if there is one)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(build_parser(), _caption, argv)


def _caption(arguments: argparse.Namespace) -> int:
    from adapters.filesystem import FileBlobStore
    from adapters.images.isolated import IsolatedInspector
    from application.caption_images import make_captions
    from application.stop_signal import StopSignal
    from application.worker_config import WorkerConfig
    from entrypoints.devices import check_device, choose_devices
    from entrypoints.local_run import IMAGES, MAX_LOCAL_BYTES, inspect
    from entrypoints.models import load_captioner
    from entrypoints.settings import load_settings, log_warnings
    from entrypoints.shutdown import signals_handled

    settings = load_settings(options=arguments)
    check_device(arguments.device)
    log_warnings(settings)
    if settings.caption_model is None:
        raise UserError(
            "no caption model: give --caption-model, such as "
            "Salesforce/blip-image-captioning-base, or set CAPTION_MODEL"
        )
    folder: Path = arguments.images
    images = inspect(
        find_images(folder),
        FileBlobStore({IMAGES: folder}, read_only=(IMAGES,)),
        IsolatedInspector(),
        WorkerConfig(max_image_bytes=MAX_LOCAL_BYTES),
    )
    unusable = unusable_captions(folder, images.usable)
    for line in [*(f"left out {one.name}: {one.reason}" for one in images.rejected), *unusable]:
        print(line, file=sys.stderr)
    code = EXIT_FAILED if unusable else 0
    without = [image for image in images.usable if find_caption(folder / image.name) is None]
    if not without:
        print("no image lacks a caption file" if unusable else "every image has a caption")
        return code
    with signals_handled(SIG_DFL):
        captioner = load_captioner(settings, choose_devices(settings)[0])
    assert captioner is not None  # a model is configured
    # Images whose names differ only in the extension share a caption file.
    described = [*{(folder / image.name).with_suffix(".txt"): image for image in without}.items()]
    from adapters.captioner import BATCH_SIZE

    for start in range(0, len(described), BATCH_SIZE):
        batch = dict(described[start : start + BATCH_SIZE])
        made = make_captions([*batch.values()], captioner, settings.keep_style_words, StopSignal())
        for file, image in batch.items():
            if caption := made[image.facts.sha256]:
                _write(file, caption)
            else:
                text = f"{image.name}: the model generated no caption; write {file.name} yourself"
                print(text, file=sys.stderr)
                code = EXIT_FAILED
    return code


def _write(file: Path, caption: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as output:
            output.write(caption + "\n")
    except OSError as error:
        if not isinstance(error, FileExistsError):  # an empty file would count as a caption
            file.unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from None
    print(f"{file}: {caption}")


if __name__ == "__main__":
    sys.exit(main())
