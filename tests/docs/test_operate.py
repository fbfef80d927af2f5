"""docs/operate.md knows every code and every log line that may need a person."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from domain.failure import FailureCode
from entrypoints import exit_codes

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")

HARMLESS = {
    # What the artist is told anyway, or what the job's report shows.
    "%s: %s": "an image that is refused",
    "%s is used: %s": "its pixels are whole",
    "the caption %s is left out: %s": "the image is trained on without it",
    # Nothing is lost, and nothing can be done.
    "task %s: unknown keys are ignored: %.1000s": "a newer backend says more than we know",
    "could not look for a request to cancel: %s": "it looks again within seconds",
    "the lease could not be released and will expire: %s": "it does",
    "a message's own headers cannot be passed on: %.500s": "the body is all that we need",
    "a message's headers cannot be read and are left out: %r": "the body is all that we need",
    "%s is taken with %d, but the answer broke off": "it is taken",
    "no previews at epoch %d, and none from here on": "the report has those of the end",
    "the previews of epoch %d are not stored: %s": "a courtesy, tried again at the next epochs",
    "the checkpoint under way is lost": "the job is over, or goes on from the one before",
    # Of the spool folder, for trying.
    "%s is left out: %s": "a file that cannot be read",
    "%s is ignored: %s": "a note beside a task that cannot be read",
    # Cannot happen, and is said all the same.
    "a periodic action failed": "guards a thread",
    "a listener failed at %s": "guards the work from its listeners",
    "a metric was not recorded": "guards the work from its metrics",
    # Said by a command that a person is looking at.
    "%s again: stopping at once": "it was asked for",
}


def _lines() -> Iterator[tuple[str, str]]:
    """Where each warning or error is logged, and its format."""
    for part in ("application", "adapters", "entrypoints"):
        for path in sorted((ROOT / part).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in {"warning", "error", "exception", "critical"}
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id in {"log", "logger", "logging"}
                ):
                    text = node.args[0]
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    assert isinstance(text, ast.Constant), f"{where}: give a constant format"
                    yield where, str(text.value)


def _shown(text: str) -> str:
    """A format as the page writes it: dots for what is filled in."""
    return "`" + re.sub(r"%[.\d]*[a-z]", "...", text).replace("%%", "%") + "`"


LINES = list(_lines())


def test_there_are_log_lines_to_look_for() -> None:
    assert len({text for _, text in LINES}) > 15


@pytest.mark.parametrize(("where", "text"), LINES)
def test_a_warning_is_explained_or_known_to_be_harmless(where: str, text: str) -> None:
    assert (_shown(text) in PAGE) != (text in HARMLESS), (
        f"{where}: give {_shown(text)} a row in docs/operate.md, or a place among the harmless"
    )


def test_every_line_on_the_page_and_on_the_list_is_logged_somewhere() -> None:
    section = PAGE[PAGE.index("## Log lines") : PAGE.index("## The acknowledgement timeout")]
    explained = set(re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE))
    assert explained
    logged = {text for _, text in LINES}
    assert explained <= {_shown(text) for text in logged}
    assert HARMLESS.keys() <= logged


@pytest.mark.parametrize("code", list(FailureCode))
def test_every_error_code_has_a_remedy(code: FailureCode) -> None:
    assert re.search(rf"^\| `{code}` \| .+ \| .+ \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(
    "code", [0, *(value for name, value in vars(exit_codes).items() if name.startswith("EXIT_"))]
)
def test_every_exit_code_has_a_remedy(code: int) -> None:
    assert re.search(rf"^\| (?:\d+, )?{code}(?:, \d+)? \| .+ \| .+ \| .+ \|$", PAGE, re.MULTILINE)


def test_every_alert_leads_somewhere() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    section = PAGE[PAGE.index("## Alerts") : PAGE.index("## A job seems stuck")]
    assert set(re.findall(r"^\| `(\w+)` \| .+ \|$", section, re.MULTILINE)) == alerts
