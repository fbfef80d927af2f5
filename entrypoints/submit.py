"""Submit a task to the queue as the backend does, show a job's status, manage dead letters."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.common.text import printable
from adapters.images.folder import find_caption, find_images, read_own
from domain.captions import caption_suffixes
from domain.errors import UserError
from domain.parameters import RequestedParameters
from domain.task import InvalidTask, TrainingTask
from entrypoints.cli import CommandParser, run_command
from entrypoints.options import (
    add_parameter_options,
    add_style_options,
    given_parameters,
    option_of,
    path,
)

if TYPE_CHECKING:
    from entrypoints.bootstrap import Container

EPILOG = """\
examples:
  python -m entrypoints.submit task.json
  python -m entrypoints.submit images --style-id 123 --epochs 200
  python -m entrypoints.submit --status 550e8400-e29b-41d4-a716-446655440000
  python -m entrypoints.submit --cancel 550e8400-e29b-41d4-a716-446655440000
  python -m entrypoints.submit --dead
  python -m entrypoints.submit --replay-dead 550e8400-e29b-41d4-a716-446655440000
  python -m entrypoints.submit --drop-dead 550e8400-e29b-41d4-a716-446655440000

The images of a folder are first uploaded to the bucket of training images. A cancelled job stops
at its next step; a waiting task ends when a worker receives it.

exit codes: 0 done, 1 the queue or the store is unavailable or denies access, 2 the input is wrong
"""
_FOR_A_FOLDER = ("style_id", "tags", "caption_extension")


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        "submit",
        usage="%(prog)s [options] (source | --status TASK_ID | --cancel TASK_ID | --dead | "
        "--replay-dead [TASK_ID] | --drop-dead TASK_ID)",
        description="Submit a training task, show a task's status, cancel a task, or manage dead "
        "letters.",
        epilog=EPILOG,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("source", type=path, nargs="?", help="a task as JSON, or a folder of images")
    what.add_argument("--cancel", metavar="TASK_ID", help="cancel this task")
    what.add_argument("--status", metavar="TASK_ID", help="show this task's status")
    what.add_argument(
        "--dead", action="store_true", help="list the dead letters; --json includes their bodies"
    )
    what.add_argument(
        "--replay-dead",
        metavar="TASK_ID",
        nargs="?",
        const="",
        help="return all dead letters to the queue; with TASK_ID this task's, with - those "
        "without a task id",
    )
    what.add_argument(
        "--drop-dead",
        metavar="TASK_ID",
        help="delete this task's dead letters permanently; with - those without a task id",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    add_style_options(parser)
    # None shows that an option was not given.
    parser.set_defaults(style_id=None, tags=None)
    add_parameter_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(build_parser(), _carry_out, argv)


def _carry_out(arguments: argparse.Namespace) -> int:
    from dependency_injector import providers

    from adapters.logs.setup import start_logging
    from entrypoints.bootstrap import open_container
    from entrypoints.settings import load_settings, log_warnings
    from entrypoints.stores import open_blobs

    _require_folder_for_options(arguments)
    settings = load_settings()
    level = "DEBUG" if arguments.debug else "WARNING"
    start_logging(level=level, form="text", secrets=settings.secrets())
    log_warnings(settings)
    with open_container(settings) as container:
        container.plain_blobs.override(
            providers.Singleton(open_blobs, settings, container.clock, supplies=True)
        )
        if arguments.cancel is not None:
            _print_outcome(_cancel(arguments.cancel, container), as_json=arguments.json)
        elif arguments.status is not None:
            _status(arguments.status, container, as_json=arguments.json)
        elif arguments.source is None:
            _dead_letters(arguments, container)
        else:
            task_id = _submit(arguments, container)
            outcome = {"task_id": task_id, "text": f"submitted {task_id}"}
            _print_outcome(outcome, as_json=arguments.json)
    return 0


def _print_outcome(outcome: dict[str, str], *, as_json: bool) -> None:
    """Print the outcome: only its text, or all of it as JSON."""
    print(json.dumps(outcome) if as_json else printable(outcome["text"]))


def _cancel(text: str, container: Container) -> dict[str, str]:
    task_id = _task_id("--cancel", text)
    store = container.store()
    job = store.read_job(task_id)
    state = job.state if job else "unknown"
    if job and job.is_terminal:
        text = f"task {task_id} is {state} already"
    else:
        store.request_cancellation(task_id)
        known = f"it is {state} now" if job else "no worker has started it yet; check the id"
        text = f"cancellation of task {task_id} requested ({known})"
    return {"task_id": task_id, "state": state, "text": text}


def _status(text: str, container: Container, *, as_json: bool) -> None:
    from adapters.console.job_status import as_values, in_words
    from application.job_status import job_status

    task_id = _task_id("--status", text)
    status = job_status(task_id, container.store())
    if as_json:
        print(json.dumps(as_values(status), indent=1))
    else:
        print("\n".join(map(printable, in_words(status))))


def _task_id(option: str, text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise UserError(f"{option} {text}: this is not a task id; give a UUID") from None


def _dead_letters(arguments: argparse.Namespace, container: Container) -> None:
    """List the dead letters, or put back or drop some."""
    from adapters.common.queue_ports import DeadLetterAction
    from adapters.console.dead_letters import process_dead_letters
    from adapters.schemas.task import task_id_of

    if arguments.drop_dead is not None:
        action, option, task_id = DeadLetterAction.DROP, "--drop-dead", arguments.drop_dead
        if not task_id:
            raise UserError("--drop-dead: give a task's id; see --dead")
    elif arguments.replay_dead is not None:
        action, option = DeadLetterAction.PUT_BACK, "--replay-dead"
        task_id = arguments.replay_dead or None
    else:
        action, option, task_id = DeadLetterAction.KEEP, "--dead", None
    output = process_dead_letters(
        container.dead_letters(),
        action,
        task_id,
        task_id_of=task_id_of,
        option=option,
        as_json=arguments.json,
    )
    print(output)


def _submit(arguments: argparse.Namespace, container: Container) -> str:
    source: Path = arguments.source
    if source.is_file():
        body = read_own(source)
        try:
            task = container.parse_task()(body)
        except InvalidTask as error:
            raise UserError(f"{source}: {error}") from None
        container.queue().publish(body)
        return task.task_id
    if source.is_dir():
        return _submit_folder(source, arguments, container)
    raise UserError(
        f"{source}: no such file or folder; give a task's JSON file or a folder of images"
    )


def _submit_folder(folder: Path, arguments: argparse.Namespace, container: Container) -> str:
    """Upload the folder's images and captions to the bucket, and publish their task."""
    from adapters.schemas.task import encode_task

    style_id = 1 if arguments.style_id is None else arguments.style_id
    bucket = container.settings().images
    task_id = str(uuid.uuid4())
    suffixes = caption_suffixes(arguments.caption_extension)
    names = find_images(folder)
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{folder}: {name!r} is not UTF-8; rename the file") from None
    places = [bucket.at(f"training/{style_id}/{task_id}/{name}") for name in names]
    body = encode_task(
        TrainingTask(
            task_id=task_id,
            style_id=style_id,
            images=tuple(places),
            tags=arguments.tags or (),
            requested=RequestedParameters(given_parameters(arguments)),
        )
    )
    try:
        container.parse_task()(body)
    except InvalidTask as error:
        raise UserError(_as_given(error, folder, len(names))) from None
    blobs = container.blobs()
    for name, at in zip(names, places, strict=True):
        blobs.put(at, read_own(folder / name))
        # Workers read captions named .txt.
        if (caption := find_caption(folder / name, suffixes)) is not None:
            blobs.put(at.with_suffix(".txt"), read_own(caption), content_type="text/plain")
    container.queue().publish(body)
    return task_id


def _as_given(error: InvalidTask, folder: Path, count: int) -> str:
    """The error text for a folder's task, with command-line options in place of field names."""
    from adapters.schemas.task import MAX_IMAGES

    for field, option in (("data.style_id", "--style-id"), ("data.tags", "--tags")):
        if error.field.startswith(field):
            return f"{option} {error.value}: {error.remedy}"
    if error.field == "data.images":
        return f"{folder}: has {count} images; give at most {MAX_IMAGES}"
    return str(error)


def _require_folder_for_options(arguments: argparse.Namespace) -> None:
    """Check that options for a task are given only with a folder."""
    given = set(given_parameters(arguments))
    given |= {name for name in _FOR_A_FOLDER if getattr(arguments, name) is not None}
    if given and (arguments.source is None or arguments.source.is_file()):
        raise UserError(
            f"{option_of(min(given))}: applies only to a folder of images; leave it out"
        )


if __name__ == "__main__":
    sys.exit(main())
