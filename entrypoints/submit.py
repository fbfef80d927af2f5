"""Put a task on the queue, as the backend does; cancel one; put dead letters back."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from domain.job import JobState
from domain.location import Location
from domain.parameters import RequestedParameters
from domain.task import TrainingTask
from entrypoints.cli import add_common_options, run_command
from entrypoints.exits import UsageError
from entrypoints.options import add_parameter_options, add_style_options, named_parameters
from entrypoints.picture_folder import find_pictures

if TYPE_CHECKING:
    from application.ports import DeadMessage
    from entrypoints.container import Container

EPILOG = """\
examples:
  python -m entrypoints.submit task.json
  python -m entrypoints.submit pictures --style-id 123 --epochs 200
  python -m entrypoints.submit --cancel 550e8400-e29b-41d4-a716-446655440000
  python -m entrypoints.submit --dead
  python -m entrypoints.submit --replay-dead 550e8400-e29b-41d4-a716-446655440000

A folder's pictures are put into the bucket of training images first. A cancelled job stops at its
next step; one that waits is skipped when its turn comes.

exit codes: 0 done, 1 queue or storage cannot be reached or refuses, 2 the input is wrong
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m entrypoints.submit",
        description="Put a training task on the queue, cancel one, or put dead letters back.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "source", type=Path, nargs="?", help="a task as JSON, or a folder of pictures"
    )
    what.add_argument("--cancel", metavar="TASK_ID", help="stop this task wherever it is")
    what.add_argument("--dead", action="store_true", help="list the dead letters")
    what.add_argument(
        "--replay-dead",
        metavar="TASK_ID",
        nargs="?",
        const="",
        help="list the dead letters and put them back on the queue: all, or this task's",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    add_style_options(parser)
    add_parameter_options(parser)
    add_common_options(parser, script="style-submit")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(build_parser(), _carry_out, argv)


def _carry_out(arguments: argparse.Namespace) -> int:
    from dependency_injector import providers

    from entrypoints.container import open_blobs, open_container
    from entrypoints.logs import start_logging
    from entrypoints.settings import load_settings

    settings = load_settings()
    level = "DEBUG" if arguments.debug else "WARNING"
    start_logging(level=level, form="text", secrets=settings.secrets())
    with open_container(settings) as container:
        container.blobs.override(
            providers.Singleton(open_blobs, settings, container.clock, supplies=True)
        )
        if arguments.cancel is not None:
            _tell(_cancel(arguments.cancel, container), as_json=arguments.json)
        elif arguments.dead:
            _sift(container, None, as_json=arguments.json)
        elif arguments.replay_dead is not None:
            _sift(container, arguments.replay_dead, as_json=arguments.json)
        else:
            task_id = _submit(arguments, container)
            outcome = {"task_id": task_id, "text": f"submitted {task_id}"}
            _tell(outcome, as_json=arguments.json)
    return 0


def _tell(outcome: dict[str, str], *, as_json: bool) -> None:
    """Print the outcome: its text, or all of it."""
    print(json.dumps(outcome) if as_json else outcome["text"])


def _cancel(text: str, container: Container) -> dict[str, str]:
    from application.cancellation import request_cancellation
    from application.journal import recorded_job

    try:
        task_id = str(uuid.UUID(text))
    except ValueError:
        raise UsageError(f"--cancel {text}: give a task's id, which is a UUID") from None
    blobs, layout = container.blobs(), container.layout()
    job = recorded_job(blobs, layout.journal(task_id))
    state = job.state if job else JobState.QUEUED
    if job and job.is_terminal:
        text = f"task {task_id} is {state} already"
    else:
        request_cancellation(task_id, blobs, layout, container.clock().now())
        text = f"task {task_id} will stop ({state} so far)"
    return {"task_id": task_id, "state": state, "text": text}


def _sift(container: Container, wanted: str | None, *, as_json: bool) -> None:
    """List the dead letters; put back those of the task ``wanted``, or all where it is empty."""
    from adapters.wire.task import task_id_of

    rows = []

    def decide(letter: DeadMessage) -> bool:
        task_id = task_id_of(letter.body)
        back = wanted is not None and wanted in ("", task_id)
        rows.append(
            {
                "task_id": task_id,
                "since": letter.since.isoformat() if letter.since else None,
                "reason": letter.reason,
                "details": dict(letter.details),
                "put_back": back,
            }
        )
        return back

    container.dead_letters().sift(decide)
    if wanted and not any(row["put_back"] for row in rows):
        raise UsageError(f"--replay-dead {wanted}: no dead letter is of this task; see --dead")
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows:
        mark = "put back" if row["put_back"] else "dead"
        print(f"{mark}  {row['since'] or '-'}  {row['task_id'] or '-'}  {row['reason']}")
    returned = sum(bool(row["put_back"]) for row in rows)
    print(f"{len(rows)} dead letters, {returned} put back")


def _submit(arguments: argparse.Namespace, container: Container) -> str:
    from adapters.wire.task import encode_task

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
        tags=arguments.tags,
        requested=requested,
    )


if __name__ == "__main__":
    sys.exit(main())
