"""Write the documents that are generated from the code. See `--help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EPILOG = """\
examples:
  python -m tools.docs.documents
  python -m tools.docs.documents --check

docs/asyncapi.yaml describes the queue, docs/openapi.yaml the webhooks, docs/parameters.md the
training parameters, docs/settings.md the settings. Change the code, then run this.

exit codes: 0 written, or current; 1 `--check` found one that is not current
"""
ROOT = Path(__file__).resolve().parents[2]
HEADER = "# Made by `python -m tools.docs.documents` from the code's own models; do not edit.\n"


def render(root: Path) -> dict[Path, str]:
    """Text of each document, by its file below ``root``."""
    import yaml

    from tools.docs.asyncapi import asyncapi
    from tools.docs.openapi import openapi
    from tools.docs.parameter_docs import parameters_page
    from tools.docs.settings_page import settings_page

    class Plain(yaml.SafeDumper):
        """Writes repeated values in full instead of YAML aliases, for human readers."""

        def ignore_aliases(self, _data: object) -> bool:
            return True

    def plain(document: object) -> str:
        text = yaml.dump(document, Dumper=Plain, sort_keys=False, allow_unicode=True, width=99)
        return HEADER + str(text)

    docs = root / "docs"
    return {
        docs / "asyncapi.yaml": plain(asyncapi()),
        docs / "openapi.yaml": plain(openapi()),
        docs / "parameters.md": parameters_page(),
        docs / "settings.md": settings_page(),
    }


def stale(root: Path) -> list[Path]:
    """Files below ``root`` that are missing or differ from the generated text."""
    return [
        file
        for file, text in render(root).items()
        if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.docs.documents",
        description="Write the documents that are made from the code.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=ROOT, help="folder (default: this one's)")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    arguments = parser.parse_args(argv)
    if arguments.check:
        outdated = stale(arguments.out)
        for file in outdated:
            print(f"{file} is not current; run python -m tools.docs.documents")
        return 1 if outdated else 0
    for file, text in render(arguments.out).items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
