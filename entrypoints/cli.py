"""Common to all commands: version, shell completion, errors in one line."""

from __future__ import annotations

import argparse
import atexit
import gc
import logging
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from application.text import printable
from domain.errors import UserError
from domain.parameters import InvalidParameter
from entrypoints.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from entrypoints.options import option_of, path

log = logging.getLogger(__name__)

LINUX_ONLY = "this program runs on Linux only: on Windows use WSL 2, on a Mac the Docker image"
SHELLS = ("bash", "zsh", "tcsh")


def version() -> str:
    """Of the program, as it is installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("style-trainer")
    except PackageNotFoundError:
        return "unknown (not installed)"


class CommandParser(argparse.ArgumentParser):
    """One that proposes the option that was probably meant."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2 and the message."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            near = get_close_matches(unknown[1], self._option_string_actions, n=1, cutoff=0.7)
            message += f": did you mean {near[0]}?" if near else ""
        super().error(message)


def add_common_options(parser: argparse.ArgumentParser, *, script: str) -> None:
    """Add ``--debug``, ``--version`` and ``--print-completion``.

    Args:
        script: the command's name where the package is installed; what a shell completes.
    """
    group = parser.add_argument_group("about this command")
    group.add_argument("--debug", action="store_true", help="log more, and show tracebacks")
    group.add_argument("--version", action=_Version, help="say which version this is, and end")
    group.add_argument(
        "--print-completion",
        action=_Completion,
        script=script,
        choices=SHELLS,
        help=f'completion for a shell: eval "$({script} --print-completion bash)"',
    )


def run_command(
    parser: argparse.ArgumentParser,
    carry_out: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
    *,
    log_defects: bool = False,
) -> int:
    """Parse the command line, carry it out, and return the exit code.

    What goes wrong is one line with its remedy on standard error; before it comes the traceback
    with ``--debug``.

    Args:
        log_defects: nobody sits by to repeat the command with ``--debug``: have the traceback of
            a defect in the log at once.
    """
    # Else the interpreter's last collections walk through all of torch's and its like's modules
    # while somebody waits for the process to end.
    atexit.register(gc.freeze)
    if sys.platform != "linux":
        print(f"error: {LINUX_ONLY}", file=sys.stderr)
        return EXIT_USAGE
    arguments = parser.parse_args(with_dashes(sys.argv[1:] if argv is None else argv))
    try:
        return carry_out(arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        if arguments.debug:
            lines = "".join(traceback.format_exception(error)).splitlines()
            print("\n".join(map(printable, lines)), file=sys.stderr)
        explained = explain(error)
        if explained is None:
            if log_defects:
                log.critical("the command ends by a defect", exc_info=error)
            what = " ".join(f"{type(error).__name__}: {error}".split())
            explained = EXIT_FAILED, [f"{what} (this is a defect: --debug shows where)"]
        code, lines = explained
        print("\n".join(f"error: {printable(line)}" for line in lines), file=sys.stderr)
        return code


def with_dashes(argv: Sequence[str]) -> list[str]:
    """The command line with ``--learning_rate``, as other trainers have it, as
    ``--learning-rate``; values are left as they are."""
    ended = list(argv).index("--") if "--" in argv else len(argv)
    return [
        re.sub(r"^--[\w-]+(?==|$)", lambda option: option[0].replace("_", "-"), text)
        for text in argv[:ended]
    ] + list(argv[ended:])


def explain(error: Exception) -> tuple[int, list[str]] | None:
    """Exit code and message for an error; None for an unexpected one."""
    from application.ports import BlobDenied, TrainerBroken, Unavailable

    if isinstance(error, InvalidParameter):
        return EXIT_USAGE, [f"{option_of(error.name)} {error.value}: {error.remedy}"]
    lines = str(error).splitlines() or [type(error).__name__]
    if isinstance(error, UserError):
        return EXIT_USAGE, lines
    if isinstance(error, Unavailable | BlobDenied | TrainerBroken):
        return EXIT_FAILED, [" ".join(lines)]
    return None


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help, default=argparse.SUPPRESS)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"style-trainer {version()}")
        parser.exit()


class _Completion(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, script: str, **kind: Any) -> None:
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, **kind)
        self.script = script

    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, shell: Any, *_: Any
    ) -> None:
        import shtab

        for action in parser._actions:
            if action.type is path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own
        parser.prog = self.script
        print(shtab.complete(parser, shell=shell))
        parser.exit()
