"""The worker: receives tasks from the queue and trains a style for each. See `--help`."""

from __future__ import annotations

import argparse
import logging
import sys
from signal import SIG_DFL
from typing import TYPE_CHECKING

from domain.errors import UserError
from entrypoints.cli import CommandParser, run_command
from entrypoints.exit_codes import EXIT_FAILED

if TYPE_CHECKING:
    from entrypoints.settings import Settings

EPILOG = """\
Without a broker, each .json file in SPOOL_DIR is a task in the backend's format, and the folders
in STORAGE_DIR are the buckets. `python -m entrypoints.submit` creates such a file.

examples:
  python -m entrypoints.worker --check      check a new pod: what works, and how to fix the rest
  python -m entrypoints.worker              run until stopped
  python -m entrypoints.worker --once       run until no task has come for IDLE_SECONDS
  python -m entrypoints.worker --gpus all   a worker on every GPU, each with its own STATUS_PORT

The worker serves a status page, /metrics, /health/live and /health/ready at http://127.0.0.1:9108
(STATUS_HOST, STATUS_PORT). The log is text on a terminal, else JSON (LOG_FORMAT).

SIGTERM or Ctrl-C: finish the step, save a checkpoint, requeue the job, exit. After a second signal
or SHUTDOWN_TIMEOUT the worker exits immediately; another worker resumes the job from its last
checkpoint.

exit codes: 0 stopped, or the check found no problem; 1 the worker failed, or the check found a
problem; 2 a setting is wrong; 3 not stopped within SHUTDOWN_TIMEOUT; 130, 143 exited immediately
after a second signal, or one while libraries load or --check runs (Ctrl-C, SIGTERM)
"""


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        "worker",
        description="Train styles from a queue of tasks: one at a time, or up to JOBS_TOGETHER.",
        epilog=EPILOG,
    )
    parser.add_argument("--once", action="store_true", help="exit when no task has come lately")
    parser.add_argument("--check", action="store_true", help="check everything that a job needs")
    parser.add_argument(
        "--gpus", metavar="GPUS", help="start one worker per GPU: all, or numbers such as 0,1"
    )
    parser.add_argument("--json", action="store_true", help="print the check's results as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(build_parser(), _work, argv, log_unexpected=True)


def _work(arguments: argparse.Namespace) -> int:
    from adapters.logs.setup import log_uncaught_exceptions, start_logging
    from entrypoints.settings import WorkerSettings, load_settings, log_warnings

    if arguments.json and not arguments.check:
        raise UserError("--json: has no effect without --check")
    settings = load_settings(kind=WorkerSettings)
    # The check prints each problem itself; its log would repeat them.
    level = "ERROR" if arguments.check else settings.log_level
    logs = start_logging(
        level="DEBUG" if arguments.debug else level,
        form=settings.log_format,
        secrets=settings.secrets(),
    )
    if arguments.gpus is not None:
        return _fleet(arguments, settings)

    from application.stop_signal import StopSignal
    from entrypoints.bootstrap import open_container
    from entrypoints.check import check, require_fit_store
    from entrypoints.connections import queue_place
    from entrypoints.logs import start_cloudwatch, start_sentry
    from entrypoints.models import import_libraries
    from entrypoints.shutdown import graceful_shutdown, signals_handled

    with signals_handled(SIG_DFL):
        import_libraries()
    log_uncaught_exceptions()
    log = logging.getLogger(__name__)
    stop = StopSignal()
    on_signal = graceful_shutdown(stop, settings.shutdown_timeout)
    if arguments.check:  # it has no job to finish
        on_signal = signals_handled(SIG_DFL)
    with on_signal, open_container(settings, logs, stop) as container:
        logs.context.worker = container.worker()
        log_warnings(settings)
        start_sentry(settings, logs)
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
            done = worker_pool(stop, until_empty=arguments.once)
            log.info("worker %s exits", container.worker())
    return 0 if done else EXIT_FAILED


def _fleet(arguments: argparse.Namespace, settings: Settings) -> int:
    from adapters.common.devices import choose_gpus
    from adapters.nvml import GpuReader
    from entrypoints.fleet import Fleet
    from entrypoints.settings import environment_on_gpu, visible_gpus

    if arguments.check:
        raise UserError("--gpus and --check: check one GPU at a time, such as DEVICE=cuda:1")
    if settings.device not in {None, "cuda", "cuda:0"}:  # each worker sees only its own GPU
        raise UserError(f"--gpus and DEVICE={settings.device}: give one of the two")
    visible = visible_gpus()
    if visible is None:
        visible = tuple(str(card.index) for card in GpuReader()())
    gpus = choose_gpus(arguments.gpus, visible)
    options = [f"--{name}" for name in ("once", "debug") if getattr(arguments, name)]
    return Fleet(
        gpus,
        [sys.executable, "-m", "entrypoints.worker", *options],
        lambda gpu: environment_on_gpu(settings, gpu, gpus.index(gpu)),
        once=arguments.once,
    ).run()


if __name__ == "__main__":
    sys.exit(main())
