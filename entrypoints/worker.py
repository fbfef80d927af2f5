"""The worker: receives tasks from the queue and trains a style for each. See `--help`."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from entrypoints.cli import CommandParser, add_common_options, run_command
from entrypoints.exit_codes import UsageError

if TYPE_CHECKING:
    from entrypoints.settings import Settings

EPILOG = """\
Without a broker, tasks are files: every .json in SPOOL_DIR is one, in the backend's own form,
and folders in STORAGE_DIR stand for buckets. `python -m entrypoints.submit` puts one there.

examples:
  python -m entrypoints.worker --check      on a new pod: what works, and what to do about the rest
  python -m entrypoints.worker              until it is asked to stop
  python -m entrypoints.worker --once       until the queue is empty
  python -m entrypoints.worker --gpus all   a worker on every GPU; each on a STATUS_PORT of its own

While it runs, it shows itself at http://127.0.0.1:9108 (STATUS_HOST, STATUS_PORT): a page,
/metrics, /health/live and /health/ready. Its log is text on a terminal, else JSON (LOG_FORMAT).

SIGTERM or Ctrl-C: finish the step, save a checkpoint, hand the job over, exit 0. A second one ends
at once (143, 130), and so does the end of SHUTDOWN_TIMEOUT (3): the job goes on elsewhere from its
last checkpoint.

exit codes: 0 stopped as asked, or everything works; 1 the check found something that does not;
2 a setting is wrong; 3 not stopped within SHUTDOWN_TIMEOUT; 130, 143 stopped at once
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m entrypoints.worker",
        description="Train styles from a queue of tasks: one at a time, or JOBS_TOGETHER.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--once", action="store_true", help="end when the queue is empty")
    parser.add_argument(
        "--check", action="store_true", help="try everything that a job needs, and say what works"
    )
    parser.add_argument(
        "--gpus",
        metavar="GPUS",
        help="one worker on each of these, under this command: all, or numbers such as 0,1",
    )
    parser.add_argument("--json", action="store_true", help="print what the check found as JSON")
    add_common_options(parser, script="style-worker")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(build_parser(), _work, argv, log_defects=True)


def _work(arguments: argparse.Namespace) -> int:
    from entrypoints.settings import (
        WorkerSettings,
        load_settings,
        warn_about_names,
    )

    settings = load_settings(kind=WorkerSettings)
    if arguments.gpus is not None:
        return _fleet(arguments, settings)

    from application.stop_signal import StopSignal
    from entrypoints.bootstrap import open_container
    from entrypoints.check import check, require_fit_store
    from entrypoints.connections import queue_place
    from entrypoints.default_base import quiet_libraries
    from entrypoints.logs import (
        log_what_nobody_catches,
        start_cloudwatch,
        start_logging,
        start_sentry,
    )
    from entrypoints.shutdown import graceful_shutdown

    quiet_libraries()
    logs = start_logging(
        level="DEBUG" if arguments.debug else settings.log_level,
        form=settings.log_format,
        secrets=settings.secrets(),
    )
    log_what_nobody_catches()
    warn_about_names()
    start_sentry(settings, logs)
    log = logging.getLogger(__name__)
    stop = StopSignal()
    with (
        graceful_shutdown(stop, settings.shutdown_timeout),
        open_container(settings, logs, stop) as container,
    ):
        if arguments.check:
            return check(container, as_json=arguments.json)
        start_cloudwatch(settings, logs, container.worker())
        require_fit_store(container)
        from entrypoints.status import serving

        with serving(container):
            state = container.worker_state()
            state.device = ", ".join(container.devices())
            state.model = container.base_model().name
            worker_pool = container.worker_pool()
            log.info("worker %s waits for tasks in %s", container.worker(), queue_place(settings))
            worker_pool(stop, until_empty=arguments.once)
            log.info("worker %s ends", container.worker())
    return 0


def _fleet(arguments: argparse.Namespace, settings: Settings) -> int:
    from adapters.nvml import GpuReader
    from entrypoints.fleet import Fleet, gpus_named, worker_command
    from entrypoints.logs import start_logging
    from entrypoints.settings import environment_on_gpu

    if arguments.check:
        raise UsageError("--gpus and --check: check one worker at a time, with DEVICE=cuda:1 say")
    if settings.device not in {None, "cuda", "cuda:0"}:  # each worker sees only its own GPU
        raise UsageError(f"--gpus and DEVICE={settings.device}: give one of the two")
    gpus = gpus_named(arguments.gpus, lambda: len(GpuReader()()))
    start_logging(
        level="DEBUG" if arguments.debug else settings.log_level,
        form=settings.log_format,
        secrets=settings.secrets(),
    )
    options = [name for name in ("once", "debug") if getattr(arguments, name)]
    return Fleet(
        gpus,
        worker_command([f"--{name}" for name in options]),
        lambda gpu: environment_on_gpu(settings, gpu, gpus.index(gpu)),
        once=arguments.once,
    ).run()


if __name__ == "__main__":
    sys.exit(main())
