"""docs/parameters.md and the command line have every parameter that the code has."""

from __future__ import annotations

import argparse

import pytest

from domain.parameters import PARAMETER_NAMES
from entrypoints.options import add_parameter_options, option_of
from tools.docs.parameter_docs import parameters_page


@pytest.mark.parametrize("name", sorted(PARAMETER_NAMES))
def test_every_parameter_has_a_row_and_an_option(name: str) -> None:
    (row,) = [line for line in parameters_page().splitlines() if line.startswith(f"| `{name}` |")]
    assert len(row.split("|")[4].strip()) > 10, "it says what the parameter is for"
    parser = argparse.ArgumentParser()
    add_parameter_options(parser)
    assert option_of(name) in parser.format_help()
    known = {action.dest for action in parser._actions}
    assert name in known
