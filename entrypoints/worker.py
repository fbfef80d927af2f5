"""The worker: takes tasks from the queue and turns each into a style. See `--help`."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from entrypoints.exits import EXIT_USAGE

if TYPE_CHECKING:
    from entrypoints.settings import Settings

EPILOG = """\
Without a broker, tasks are files: every .json in SPOOL_DIR is one, in the backend's own form,
and folders in STORAGE_DIR stand for buckets. `python -m entrypoints.submit` puts one there.

examples:
  python -m entrypoints.worker --check      on a new pod: what works, and what to do about the rest
  python -m entrypoints.worker              until it is asked to stop
  python -m entrypoints.worker --once       until the queue is empty

SIGTERM or Ctrl-C: finish the step, save a checkpoint, hand the job over, exit 0. A second one ends
at once (143, 130), and so does the end of GRACE_SECONDS (3): the job goes on elsewhere from its
last checkpoint.

exit codes: 0 stopped as asked, or everything works; 1 the check found something that does not;
2 a setting is wrong; 3 not done when the grace was over; 130, 143 stopped at once
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m entrypoints.worker",
        description="Train styles from a queue of tasks, one at a time.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--once", action="store_true", help="end when the queue is empty")
    parser.add_argument(
        "--check", action="store_true", help="try everything that a job needs, and say what works"
    )
    arguments = parser.parse_args(argv)

    from entrypoints.settings import InvalidSettings, load_settings

    try:
        settings = load_settings()
    except InvalidSettings as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return EXIT_USAGE
    return _work(settings, arguments)


def _work(settings: Settings, arguments: argparse.Namespace) -> int:
    from application.stop import StopSignal
    from entrypoints.check import check
    from entrypoints.container import open_container, quiet_libraries
    from entrypoints.drain import draining

    quiet_libraries()
    from adapters.diffusion.base_model import BaseModelInvalid

    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s")
    log = logging.getLogger(__name__)
    stop = StopSignal()
    with draining(stop, settings.grace_seconds), open_container(settings) as container:
        if arguments.check:
            return check(container)
        try:
            loop = container.worker_loop()
        except BaseModelInvalid as error:
            print(f"error: BASE_MODEL: {error}", file=sys.stderr)
            return EXIT_USAGE
        log.info("worker %s waits for tasks", container.worker())
        loop(stop, until_empty=arguments.once)
        log.info("worker %s ends", container.worker())
    return 0


if __name__ == "__main__":
    sys.exit(main())
