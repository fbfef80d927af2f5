"""Ports for servers that have to be told theirs."""

from __future__ import annotations

import contextlib
import random
import socket


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listens on just now.

    Below those that the system gives to outgoing connections: a broker that is restarted wants
    its port back, and in the meantime somebody's connection might have it.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            if port not in found:
                found.append(port)
    return found


def listens(port: int) -> bool:
    """Whether something on 127.0.0.1 takes connections at this port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
