"""Write the contract with the platform as documents. See `--help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EPILOG = """\
examples:
  python -m entrypoints.documents
  python -m entrypoints.documents --check

The documents are made from the models that the code checks messages with: change those, then
run this.

exit codes: 0 written, or current; 1 `--check` found one that is not current
"""
DOCS = Path(__file__).resolve().parent.parent / "docs"
HEADER = "# Made by `python -m entrypoints.documents` from the code's own models; do not edit.\n"


def render() -> dict[str, str]:
    """The documents by the names of their files."""
    import yaml

    from entrypoints.contract.asyncapi import asyncapi
    from entrypoints.contract.openapi import openapi

    class Plain(yaml.SafeDumper):
        """Writes what repeats out in full, for readers other than programs."""

        def ignore_aliases(self, _data: object) -> bool:
            return True

    made = {"asyncapi.yaml": asyncapi(), "openapi.yaml": openapi()}
    return {
        name: HEADER
        + yaml.dump(document, Dumper=Plain, sort_keys=False, allow_unicode=True, width=99)
        for name, document in made.items()
    }


def stale(folder: Path) -> list[str]:
    """The files in ``folder`` that are not what the code says."""
    return [
        name
        for name, text in render().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m entrypoints.documents",
        description="Write asyncapi.yaml (the queue) and openapi.yaml (the webhooks).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=DOCS, help="folder (default: docs)")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    arguments = parser.parse_args(argv)
    if arguments.check:
        outdated = stale(arguments.out)
        for name in outdated:
            print(f"{arguments.out / name} is not current; run python -m entrypoints.documents")
        return 1 if outdated else 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, text in render().items():
        (arguments.out / name).write_text(text, encoding="utf-8")
        print(arguments.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
