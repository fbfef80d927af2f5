"""A node for one run of the tests: prints version and port, and ends with its standard input."""

from __future__ import annotations

import sys

from tests.services.broker import own_broker

if __name__ == "__main__":
    with own_broker() as broker:
        print(".".join(map(str, broker.version)), broker.port, flush=True)
        sys.stdin.read()
