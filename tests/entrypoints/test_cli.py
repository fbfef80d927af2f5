"""Behaviour common to all commands."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.diffusion.base.names import BaseModelInvalid
from adapters.logs.sentry import SentryMissing
from adapters.lora_files.lora_formats import InvalidLoraFile
from adapters.status_page.binding import InvalidBinding
from adapters.status_page.server import AddressTaken
from adapters.webhook.options import InvalidBackend
from application.ports import BlobDenied, QueueUnavailable
from domain.errors import UserError
from domain.limits import InvalidParameter
from domain.task import InvalidTask
from entrypoints import submit, train, worker
from entrypoints.cli import SHELLS, CommandParser, run_command
from tests.services.commands import ROOT

PRINTING = """
import sys
from entrypoints.cli import CommandParser, run_command
sys.exit(run_command(CommandParser("x"), lambda _: print("x") or 0, []))
"""

PRINTING_TO_BOTH = """
import sys
from entrypoints.cli import CommandParser, run_command

def carry_out(arguments):
    for _ in range(3):
        print("x", flush=True)
        print("x", file=sys.stderr)
    return 7

sys.exit(run_command(CommandParser("x"), carry_out, []))
"""

COMMANDS = {"train": train.main, "worker": worker.main, "submit": submit.main}


def ended(name: str, *arguments: str) -> object:
    """The exit code of a command line that argparse rejects."""
    with pytest.raises(SystemExit) as end:
        COMMANDS[name](list(arguments))
    return end.value.code


def run_with(error: BaseException | None, *argv: str) -> int:
    """A command that raises the error."""
    parser = CommandParser("x")

    def carry_out(_arguments: argparse.Namespace) -> int:
        if error is not None:
            raise error
        return 0

    return run_command(parser, carry_out, argv)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("x: no such folder"), 2, "error: x: no such folder"),
        (InvalidParameter("epochs", 0, "give 1 or more"), 2, "error: --epochs 0: give 1 or more"),
        (InvalidTask("type", "x", "give model_training"), 2, "give model_training"),
        (InvalidBinding("give a token"), 2, "error: give a token"),
        (AddressTaken("127.0.0.1:1: give another"), 2, "error: 127.0.0.1:1: give another"),
        (InvalidBackend("BACKEND_CA_FILE: is none"), 2, "error: BACKEND_CA_FILE: is none"),
        (BaseModelInvalid("x", "give one"), 2, "error: base model 'x': give one"),
        (InvalidLoraFile("x: give a LoRA"), 2, "error: x: give a LoRA"),
        (SentryMissing("pip install it"), 2, "error: pip install it"),
        (QueueUnavailable("the broker\nrefuses"), 1, "error: the broker refuses"),
        (BlobDenied("s3://models: access denied"), 1, "error: s3://models: access denied"),
        (RuntimeError("boom"), 1, "error: RuntimeError: boom (this is a bug: --debug"),
        (KeyError(), 1, "error: KeyError: (this is a bug"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (None, 0, ""),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException | None, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(error) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == bool(message)


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("boom"), 1), (UserError("boom"), 2)])
def test_debug_shows_where_an_error_comes_from_and_keeps_its_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(error, "--debug") == code
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "in carry_out" in printed


def test_errors_are_printed_without_terminal_codes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_with(UserError("a\x1b[2J\x9b\u202eb"))
    assert capsys.readouterr().err == "error: a\\u001b[2J\\u009b\\u202eb\n"


def test_a_defect_of_an_unattended_command_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parser = CommandParser("x")

    def carry_out(_arguments: argparse.Namespace) -> int:
        return 1 // 0

    assert run_command(parser, carry_out, [], log_unexpected=True) == 1
    assert "ZeroDivisionError" in caplog.text
    assert "in carry_out" in caplog.text


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("options", [[], ["-u"]])
def test_a_command_outlives_the_reader_of_its_output(stream: str, options: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, *options, "-c", PRINTING_TO_BOTH],
        cwd=ROOT,
        stdout=writer if stream == "stdout" else subprocess.PIPE,
        stderr=writer if stream == "stderr" else subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 7, done
    assert (done.stderr if stream == "stdout" else done.stdout) == b"x\n" * 3


def test_ctrl_c_while_a_command_is_imported_prints_nothing() -> None:
    program = (
        "import entrypoints, signal; "
        # If the tests run as a job in the background, the signal is ignored at the start.
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "signal.raise_signal(signal.SIGINT)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    ended = (done.returncode, done.stdout, done.stderr)
    assert ended == (-signal.SIGINT, b"", b"")  # a shell shows 130


LOADING = """
import threading
from entrypoints import train

start = train.in_background
train.in_background = lambda call: start(threading.Event().wait)
train.command()
"""


def test_a_rejected_train_command_does_not_wait_for_the_base_model(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(tmp_path), "--out", str(tmp_path / "out"), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "no usable image" in done.stderr
    assert json.loads(done.stdout)["result"] == "refused"


def test_several_wrong_settings_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    from entrypoints.settings import InvalidSettings

    assert run_with(InvalidSettings("DEVICE: one\nBASE_MODEL: two")) == 2
    assert capsys.readouterr().err == "error: DEVICE: one\nerror: BASE_MODEL: two\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_its_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(name, "--version") == 0
    assert capsys.readouterr().out.startswith("style-trainer ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_exit_codes_and_shows_examples(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(name, "--help") == 0
    text = capsys.readouterr().out
    assert "exit codes: 0 " in text
    assert "examples:" in text
    assert f"python -m entrypoints.{name}" in text


def test_options_accept_the_spelling_of_other_trainers() -> None:
    parser = CommandParser("any")
    parser.add_argument("--learning-rate")
    parser.add_argument("--trigger-word")
    parser.add_argument("rest", nargs="*")
    found = []

    def carry_out(arguments: argparse.Namespace) -> int:
        found.extend([arguments.learning_rate, arguments.trigger_word, *arguments.rest])
        return 0

    given = ["--learning_rate", "a_1", "--trigger_word=b_2", "--c_3 in a sentence", "--", "--d_4"]
    assert run_command(parser, carry_out, given) == 0
    assert found == ["a_1", "b_2", "--c_3 in a sentence", "--d_4"]


def test_elsewhere_than_on_linux_one_line_says_so() -> None:
    code = (
        "import sys; sys.platform = 'win32'; sys.modules |= {'fcntl': None, 'resource': None}; "
        "from entrypoints import submit, train, worker; sys.exit(train.main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "Linux only" in line


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("train", "--trigerword", "--trigger-word"),
        ("submit", "--epochz=3", "--epochs"),
        ("worker", "--onec", "--once"),
    ],
)
def test_a_misspelt_option_is_reported_with_a_suggestion(
    name: str, given: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"train": ["images", "--out", "out"], "submit": ["a"], "worker": []}[name]
    assert ended(name, *arguments, given) == 2
    printed = capsys.readouterr().err
    assert printed.endswith(f"did you mean {meant}?\n")
    assert len(printed.splitlines()) <= 4, "without a page of all options"


@pytest.mark.parametrize(
    ("name", "arguments", "option"),
    [
        ("train", ["images", "--out", ""], "--out"),
        ("train", ["", "--out", "out"], "images"),
        ("train", ["images", "--out", "out", "--base-model-config="], "--base-model-config"),
        ("submit", [""], "source"),
    ],
)
def test_an_empty_path_is_not_the_current_directory(
    name: str, arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(name, *arguments) == 2
    message = f"argument {option}: it is empty; give a path, or . for this folder\n"
    assert capsys.readouterr().err.endswith(message)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_a_script_that_its_shell_can_read(
    name: str, shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(name, "--print-completion", shell) == 0
    printed = capsys.readouterr().out
    assert f"style-{name}" in printed
    script = tmp_path / "completion"
    script.write_text(printed)
    if shutil.which(shell) and shell != "tcsh":
        checked = subprocess.run([shell, "-n", str(script)], capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_bash_completes_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    ended("train", "--print-completion", "bash")
    script = capsys.readouterr().out
    assert "___out_COMPGEN=_shtab_compgen_files" in script
    complete = (
        'COMP_WORDS=(style-train --ep); COMP_CWORD=1; COMP_LINE="style-train --ep"; '
        'function_name=$(complete -p style-train | sed "s/.*-F \\([^ ]*\\).*/\\1/"); '
        '$function_name style-train --ep style-train; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run([bash, "-c", f"{script}\n{complete}"], capture_output=True, text=True)
    assert done.stdout.strip() == "--epochs", done.stderr


@pytest.mark.parametrize("name", ["train", "submit"])
@pytest.mark.parametrize("given", ["", ".", "..", "a/b", "x" * 300])
def test_a_caption_extension_that_no_file_can_have_is_reported(
    name: str, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"train": ["images", "--out", "out"], "submit": ["images"]}[name]
    assert ended(name, *arguments, "--caption-extension", given) == 2
    assert "is not an extension; give one such as .caption" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "submit"])
@pytest.mark.parametrize(
    ("given", "reason"), [("x" * 300, "File name too long"), ("loop", "Too many levels")]
)
def test_a_path_that_the_system_does_not_allow_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    given: str,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    assert ended(name, given) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_closed_standard_stream_is_no_defect(stream: int) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {stream}>&-', "sh", sys.executable, "-c", PRINTING],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (b"" if stream == 1 else b"x\n")


@pytest.mark.parametrize("program", [["-c", PRINTING], ["-m", "entrypoints.train", "--help"]])
def test_a_full_disk_below_the_output_is_reported(program: list[str]) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >/dev/full', "sh", sys.executable, *program],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    reason = b"error: the output: No space left on device; free disk space\n"
    assert (done.returncode, done.stderr) == (1, reason)


def test_output_that_the_locale_cannot_encode_is_escaped() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINTING.replace('"x") or 0', '"\u00fc \U0001f3a8") or 0')],
        cwd=ROOT,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"\\xfc \\U0001f3a8\n"


@pytest.mark.parametrize("option", ["--trigger-word", "--sample-prompt", "--author", "--tags"])
def test_a_text_that_is_not_utf8_is_reported(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("train", "images", "--out", "out", option, "a\udcff") == 2
    assert f"argument {option}: it is not UTF-8" in capsys.readouterr().err
