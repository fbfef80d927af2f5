"""A RabbitMQ node with TLS, plugins, and a virtual host for quorum queues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.services.broker import Broker, own_broker
from tests.services.certificates import Authority
from tests.services.ports import free_ports, listens
from tests.services.waiting import eventually

QUORUM = "quorum"
"""A virtual host whose default queue type is quorum."""
CHECK_TIMEOUTS = "-rabbit channel_tick_interval 1000 -rabbit quorum_tick_interval 1000"
"""Check acknowledgement timeouts every second; the defaults are 60 and 5 seconds."""
DELIVERY_LIMIT = 20
"""RabbitMQ's default since 4.0; in earlier versions a policy sets it."""


@dataclass(frozen=True)
class Node:
    """A node that is never restarted: another process might take one of its ports."""

    broker: Broker
    authority: Authority
    """Signed the node's certificate, and signs those of its clients."""
    tls: int
    """Port for AMQP with TLS and a client certificate."""
    management: int
    """Port of the management plugin."""
    metrics: int
    """Port of the plugin for Prometheus."""


@contextmanager
def running_node(folder: Path) -> Iterator[Node]:
    """A running node, with its certificates in ``folder``."""
    authority = Authority(folder)
    pair = authority.issue("broker.test")
    tls, management, metrics = free_ports(3)
    configuration = f"""
        listeners.ssl.1 = 127.0.0.1:{tls}
        ssl_options.cacertfile = {authority.certificate}
        ssl_options.certfile = {pair.certificate}
        ssl_options.keyfile = {pair.key}
        ssl_options.verify = verify_peer
        ssl_options.fail_if_no_peer_cert = true
        management.tcp.ip = 127.0.0.1
        management.tcp.port = {management}
        prometheus.tcp.ip = 127.0.0.1
        prometheus.tcp.port = {metrics}
    """
    plugins = ("rabbitmq_management", "rabbitmq_prometheus")
    with own_broker(configuration=configuration, plugins=plugins, flags=CHECK_TIMEOUTS) as broker:
        # The broker counts as started when its port without TLS listens, which may be earlier.
        eventually(lambda: all(map(listens, (tls, management, metrics))))
        _add_quorum(management)
        yield Node(broker, authority, tls, management, metrics)


def _add_quorum(management: int) -> None:
    """Add the virtual host over HTTP: each call of rabbitmqctl starts an Erlang machine."""
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    limit = {"pattern": ".*", "definition": {"delivery-limit": DELIVERY_LIMIT}}
    for path, body in {
        # The field has another name since RabbitMQ 4.
        f"vhosts/{QUORUM}": {"defaultqueuetype": "quorum", "default_queue_type": "quorum"},
        f"permissions/{QUORUM}/guest": everything,
        f"policies/{QUORUM}/limit": {**limit, "apply-to": "queues"},
    }.items():
        url = f"http://127.0.0.1:{management}/api/{path}"
        requests.put(url, json=body, auth=("guest", "guest"), timeout=30).raise_for_status()
