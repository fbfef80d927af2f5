"""docs/parameters.md and the command line have every parameter that the code has."""

from __future__ import annotations

import argparse

from domain.parameters import PARAMETER_NAMES
from entrypoints.options import add_parameter_options, option_of
from tools.docs.parameter_docs import parameters_page


def test_every_parameter_has_a_row_and_an_option() -> None:
    parser = argparse.ArgumentParser()
    add_parameter_options(parser)
    page, usage = parameters_page().splitlines(), parser.format_help()
    for name in PARAMETER_NAMES:
        (row,) = [line for line in page if line.startswith(f"| `{name}` |")]
        assert len(row.split("|")[4].strip()) > 10, f"{name}: it says what the parameter is for"
        assert option_of(name) in usage
