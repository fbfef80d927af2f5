"""Write captions beside the images of a folder that have none, for a person to correct.

See `--help`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.images.folder import find_caption, find_images
from domain.errors import UserError
from entrypoints.cli import CommandParser, add_common_options, run_command
from entrypoints.options import add_caption_options, path

if TYPE_CHECKING:
    from domain.image import ImageSet

EPILOG = """\
examples:
  python -m entrypoints.caption images --caption-model Salesforce/blip-image-captioning-base
  python -m entrypoints.train images --out out

Correct the captions between the two commands. Words for the medium, such as "a painting of", are
left out of the captions, so that the style learns them.

exit codes: 0 every image has a caption, 2 the input is wrong, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m entrypoints.caption",
        description="Write <name>.txt with a caption beside each image that has no caption.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", type=path, help="folder with JPEG, PNG, WebP or AVIF images")
    add_caption_options(parser)
    parser.add_argument("--device", help="cuda, cuda:1 or cpu (default: the GPU if there is one)")
    add_common_options(parser, script="style-caption")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(build_parser(), _caption, argv)


def _caption(arguments: argparse.Namespace) -> int:
    from application.caption_images import make_captions
    from application.stop_signal import StopSignal
    from entrypoints.captioner import load_captioner
    from entrypoints.devices import choose_devices
    from entrypoints.local_run import check_device
    from entrypoints.settings import load_settings

    check_device(arguments.device)
    named = {
        "caption_model": arguments.caption_model,
        "device": arguments.device,
        "keep_style_words": arguments.keep_style_words or None,
    }
    settings = load_settings().model_copy(
        update={name: value for name, value in named.items() if value is not None}
    )
    if settings.caption_model is None:
        raise UserError(
            "no caption model: give --caption-model, such as "
            "Salesforce/blip-image-captioning-base, or set CAPTION_MODEL"
        )
    folder: Path = arguments.images
    images = _inspected(folder)
    for refused in images.refused:
        print(f"left out {refused.name}: {refused.reason}", file=sys.stderr)
    without = [image for image in images.usable if find_caption(folder / image.name) is None]
    if not without:
        print("every image has a caption")
        return 0
    captioner = load_captioner(settings, choose_devices(settings)[0])
    assert captioner is not None  # a model is configured
    made = make_captions(without, captioner, settings.keep_style_words, StopSignal())
    for image in without:
        file = (folder / image.name).with_suffix(".txt")
        caption = made[image.facts.sha256]
        if not caption:
            print(f"{image.name}: the model finds no words for it", file=sys.stderr)
            continue
        try:
            with file.open("x", encoding="utf-8") as text:
                text.write(caption + "\n")
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror or error})") from None
        print(f"{file}: {caption}")
    return 0


def _inspected(folder: Path) -> ImageSet:
    """The folder's images, prepared as for a training."""
    from adapters.filesystem import FileBlobStore
    from adapters.images.isolated import IsolatedInspector
    from application.fetch_images import fetch_images
    from application.stop_signal import StopSignal
    from application.worker_config import WorkerConfig
    from domain.location import Location
    from entrypoints.local_run import FACTS_RESOLUTION, IMAGES, MAX_LOCAL_BYTES

    return fetch_images(
        tuple(Location(IMAGES, name) for name in find_images(folder)),
        FACTS_RESOLUTION,
        FileBlobStore({IMAGES: folder}, read_only=(IMAGES,)),
        IsolatedInspector(),
        WorkerConfig(max_image_bytes=MAX_LOCAL_BYTES),
        StopSignal(),
        quiet=True,
    )


if __name__ == "__main__":
    sys.exit(main())
