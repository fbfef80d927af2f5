"""Free ports for servers that cannot choose one themselves."""

from __future__ import annotations

import contextlib
import random
import socket


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 on which nothing listens.

    They are below the range for outgoing connections: otherwise another process's connection could
    take the port of a broker while it restarts.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            if port not in found:
                found.append(port)
    return found


def listens(port: int) -> bool:
    """Whether anything accepts connections at this port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
