"""The child process: decodes one image after the other for its parent.

Messages per image: the parent sends the resolution and the file; the child returns the memory that
decoding needs, or an error; the parent sends a message once that memory is available; the child
returns the facts and the reduced image, or an error.
"""

from __future__ import annotations

import json
import resource
import warnings
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from adapters.images.opening import MAX_DECODING_BYTES, open_image
from adapters.images.prepare import check_sides, prepare
from domain.image import ImageRejected

READY, GO_AHEAD = b"ready", b"go"

_DATA_LIMIT = MAX_DECODING_BYTES + 400 * 1024**2
"""Memory limit of a child in bytes, including the interpreter and two copies of a large file."""


def main(descriptor: int) -> None:
    """Serve the parent at the other end of a socket until it closes the socket."""
    resource.setrlimit(resource.RLIMIT_DATA, (_DATA_LIMIT, _DATA_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    with Connection(descriptor) as parent:
        try:
            parent.send_bytes(READY)
            while True:
                _serve_one(parent)
        except (EOFError, OSError):
            return


def _serve_one(parent: Connection) -> None:
    resolution = int(parent.recv_bytes())
    try:
        opened = open_image(parent.recv_bytes())
        check_sides(opened)
        _send(parent, decoding_bytes=opened.decoding_bytes)
        parent.recv_bytes()
        prepared = prepare(opened, resolution)
    except ImageRejected as rejected:
        _send(parent, rejected=str(rejected))
    except MemoryError:
        _send(parent, rejected="it takes too much memory to decode; please save it smaller")
    else:
        _send(parent, facts=asdict(prepared.facts))
        parent.send_bytes(prepared.data)


def _send(parent: Connection, **message: Any) -> None:
    parent.send_bytes(json.dumps(message).encode())
