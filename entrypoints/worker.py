"""The worker: takes tasks from the queue and turns each into a style. See `--help`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys

from entrypoints.exits import EXIT_USAGE

EPILOG = """\
Without a broker, tasks are files: every .json in SPOOL_DIR is one, in the backend's own form,
and folders in STORAGE_DIR stand for buckets. `python -m entrypoints.submit` puts one there.

SIGTERM or Ctrl-C: finish the step, save a checkpoint, hand the job over, exit 0; again: at once.

exit codes: 0 stopped as asked, 2 a setting is wrong
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
    arguments = parser.parse_args(argv)

    from adapters.diffusion.base_model import BaseModelInvalid
    from application.stop import StopReason, StopSignal
    from entrypoints.container import Container
    from entrypoints.settings import InvalidSettings, load_settings

    try:
        settings = load_settings()
        logging.basicConfig(
            level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s"
        )
        container = Container(settings=settings)
        loop = container.worker_loop()
    except (InvalidSettings, BaseModelInvalid) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE

    stop = StopSignal()

    def request(number: int, _frame: object) -> None:
        stop.request(StopReason.SHUTDOWN)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request)
    log = logging.getLogger(__name__)
    log.info("worker %s waits for tasks in %s", container.worker(), settings.spool_dir)
    loop(stop, until_empty=arguments.once)
    log.info("worker %s ends", container.worker())
    return 0


if __name__ == "__main__":
    sys.exit(main())
