"""Put a task on the queue, as the backend does. See `--help`."""

from __future__ import annotations

import argparse
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from domain.location import Location
from domain.parameters import InvalidParameter, RequestedParameters
from domain.task import InvalidTask, TrainingTask
from entrypoints.exits import EXIT_USAGE, UsageError
from entrypoints.options import add_parameter_options, named_parameters, option_of
from entrypoints.picture_folder import find_pictures

if TYPE_CHECKING:
    from entrypoints.container import Container

EPILOG = """\
examples:
  python -m entrypoints.submit task.json
  python -m entrypoints.submit pictures --style-id 123 --epochs 200

A folder's pictures are put into the bucket of training images first.

exit codes: 0 the task is on the queue, 2 the input is wrong
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m entrypoints.submit",
        description="Put a training task on the queue.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="a task as JSON, or a folder of pictures")
    parser.add_argument("--style-id", type=int, default=1, help="the style's number (default: 1)")
    parser.add_argument("--tags", default="", help="keywords for the whole style, with commas")
    add_parameter_options(parser)
    arguments = parser.parse_args(argv)

    from entrypoints.settings import InvalidSettings

    try:
        print(f"submitted {_submit(arguments)}")
    except InvalidParameter as error:
        return _refuse(f"{option_of(error.name)} {error.value}: {error.remedy}")
    except (UsageError, InvalidTask, InvalidSettings) as error:
        return _refuse(str(error))
    return 0


def _refuse(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return EXIT_USAGE


def _submit(arguments: argparse.Namespace) -> str:
    from adapters.wire import encode_task
    from entrypoints.container import Container
    from entrypoints.settings import load_settings

    container = Container(settings=load_settings())
    source: Path = arguments.source
    if source.is_file():
        body = source.read_bytes()
        task = container.parse_task()(body)
    elif source.is_dir():
        task = _task_of_folder(source, arguments, container)
        body = encode_task(task)
        container.parse_task()(body)
    else:
        raise UsageError(f"{source}: no such file or folder; give a task or a folder of pictures")
    container.queue().publish(body)
    return task.task_id


def _task_of_folder(
    folder: Path, arguments: argparse.Namespace, container: Container
) -> TrainingTask:
    """Put the folder's pictures and captions into the bucket and describe the task."""
    requested = RequestedParameters(named_parameters(arguments))
    bucket = container.settings().aws_storage_bucket_name
    task_id = str(uuid.uuid4())
    blobs = container.blobs()
    images = []
    for name in find_pictures(folder):
        at = Location(bucket, f"training/{arguments.style_id}/{task_id}/{name}")
        blobs.put(at, (folder / name).read_bytes())
        images.append(at)
        caption = (folder / name).with_suffix(".txt")
        if caption.is_file():
            blobs.put(at.with_suffix(".txt"), caption.read_bytes(), content_type="text/plain")
    return TrainingTask(
        task_id=task_id,
        style_id=arguments.style_id,
        images=tuple(images),
        tags=tuple(tag.strip() for tag in arguments.tags.split(",") if tag.strip()),
        requested=requested,
    )


if __name__ == "__main__":
    sys.exit(main())
