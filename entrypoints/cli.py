"""Shared by all commands: version, shell completion, errors in one line."""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

from adapters.common.text import printable
from domain.errors import UserError
from domain.limits import InvalidParameter
from entrypoints.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from entrypoints.options import option_of, path

log = logging.getLogger(__name__)

LINUX_ONLY = "this program runs on Linux only: on Windows use WSL 2, on a Mac the Docker image"
SHELLS = ("bash", "zsh", "tcsh")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


def version() -> str:
    """The version of the installed package."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("style-trainer")
    except PackageNotFoundError:
        return "unknown (not installed)"


class CommandParser(argparse.ArgumentParser):
    """The parser of one command. It suggests the closest option for a typo.

    Args:
        name: the command's module in ``entrypoints``.
        texts: ``usage``, ``description`` and ``epilog``, as of ``ArgumentParser``.
    """

    def __init__(self, name: str, **texts: Any) -> None:
        super().__init__(
            prog=f"python -m entrypoints.{name}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **texts,
        )
        self.script = f"style-{name}"
        """The installed command, for shell completion."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and the message."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            near = get_close_matches(unknown[1], self._option_string_actions, n=1, cutoff=0.7)
            message += f": did you mean {near[0]}?" if near else ""
        super().error(message)

    def print_help(self, file: Any = None) -> None:
        """Print the help. The library's own method hides that the disk is full."""
        print(self.format_help(), end="", file=file)

    def add_common_options(self) -> None:
        """Add ``--debug``, ``--version`` and ``--print-completion``."""
        group = self.add_argument_group("about this command")
        group.add_argument("--debug", action="store_true", help="log more, and show tracebacks")
        group.add_argument(
            "--version",
            action=_Version,
            nargs=0,
            default=argparse.SUPPRESS,
            help="print the version and exit",
        )
        group.add_argument(
            "--print-completion",
            action=_Completion,
            choices=SHELLS,
            default=argparse.SUPPRESS,
            help=f'completion for a shell: eval "$({self.script} --print-completion bash)"',
        )


def run_command(
    parser: CommandParser,
    carry_out: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
    *,
    log_unexpected: bool = False,
) -> int:
    """Add the common options, parse the command line, run the command, return the exit code.

    Errors are printed to standard error as one line with the remedy, after the traceback with
    ``--debug``.

    Args:
        log_unexpected: log the traceback of an unexpected error even without ``--debug``, for
            commands that run unattended.
    """
    # Faster exit: skip the garbage collection of torch's and other large libraries' modules.
    atexit.register(gc.freeze)
    if sys.platform != "linux":
        print(f"error: {LINUX_ONLY}", file=sys.stderr)
        return EXIT_USAGE
    _prepare_streams()
    parser.add_common_options()
    arguments = argparse.Namespace()
    try:
        parser.parse_args(with_dashes(sys.argv[1:] if argv is None else argv), arguments)
        _require_unicode(arguments, parser)
        return carry_out(arguments)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            # Python flushes the rest of the output once more at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if arguments.debug:
            lines = "".join(traceback.format_exception(error)).splitlines()
            print("\n".join(map(printable, lines)), file=sys.stderr)
        explained = explain(error)
        if explained is None:
            if log_unexpected:
                log.critical("the command ended with an unexpected error", exc_info=error)
            what = " ".join(f"{type(error).__name__}: {error}".split())
            explained = EXIT_FAILED, [f"{what} (this is a bug: --debug shows where)"]
        code, lines = explained
        print("\n".join(f"error: {printable(line)}" for line in lines), file=sys.stderr)
        return code


def _prepare_streams() -> None:
    """Let no standard stream end a command: it may be closed, lose its reader, such as `head`, or
    be unable to encode a file's name.

    Python leaves a closed stream as None, and the system gives its number to the next opened file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - stays open
        elif mode == "w" and stream is getattr(sys, f"__{name}__"):
            output = BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
            text = TextIOWrapper(output, stream.encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, text)


class _Output(FileIO):
    """A stream without an error once its reader has ended, which should not end a training."""

    def write(self, data: Any, /) -> int:
        with suppress(BrokenPipeError):
            return super().write(data)
        return len(data)


def _require_unicode(arguments: argparse.Namespace, parser: CommandParser) -> None:
    """Reject texts that are not UTF-8, which no caption, metadata or message can hold; paths may
    have any bytes."""
    for name, value in vars(arguments).items():
        texts = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(text, str) and re.search("[\ud800-\udfff]", text) for text in texts):
            parser.error(f"argument {option_of(name)}: it is not UTF-8; give it in UTF-8")


def with_dashes(argv: Sequence[str]) -> list[str]:
    """Replace underscores in option names by dashes (other trainers write ``--learning_rate``);
    values stay unchanged."""
    ended = list(argv).index("--") if "--" in argv else len(argv)
    return [
        re.sub(r"^--[\w-]+(?==|$)", lambda option: option[0].replace("_", "-"), text)
        for text in argv[:ended]
    ] + list(argv[ended:])


def explain(error: Exception) -> tuple[int, list[str]] | None:
    """Exit code and message lines for an expected error; None for an unexpected one."""
    from application.ports import BlobDenied, TrainerBroken, Unavailable

    if isinstance(error, InvalidParameter):
        return EXIT_USAGE, [f"{option_of(error.name)} {error.value}: {error.remedy}"]
    lines = str(error).splitlines() or [type(error).__name__]
    if isinstance(error, UserError):
        return EXIT_USAGE, lines
    if isinstance(error, Unavailable | BlobDenied | TrainerBroken):
        return EXIT_FAILED, [" ".join(lines)]
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        where = error.filename or "the output"
        return EXIT_FAILED, [f"{where}: {error.strerror}; free disk space"]
    return None


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"style-trainer {version()}")
        parser.exit()


class _Completion(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, shell: Any, *_: Any
    ) -> None:
        import shtab

        assert isinstance(parser, CommandParser)
        for action in parser._actions:
            if action.type is path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own
        parser.prog = parser.script
        print(shtab.complete(parser, shell=shell))
        parser.exit()
