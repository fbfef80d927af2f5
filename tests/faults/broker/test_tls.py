"""A broker with TLS that requires a client certificate."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.rabbitmq.options import RabbitOptions, TlsOptions
from application.ports import QueueUnavailable
from tests.faults.broker.node import Node
from tests.services.certificates import Authority
from tests.services.queues import opened

pytestmark = pytest.mark.faults


@pytest.fixture
def tls_options(node: Node) -> RabbitOptions:
    ours = node.authority.issue("worker.test")
    return RabbitOptions(
        port=node.tls,
        queue=f"test.{uuid.uuid4().hex[:8]}",
        retry_delays=(0.2, 600.0),
        first_reconnect_delay=0.1,
        max_reconnect_delay=1.0,
        tls=TlsOptions(
            ca_file=node.authority.certificate, certificate=ours.certificate, key=ours.key
        ),
    )


def test_a_connection_with_tls_and_a_client_certificate_works(tls_options: RabbitOptions) -> None:
    with opened(tls_options) as queue:
        queue.publish(b"{}")
        delivery = queue.receive(10.0)
        assert delivery is not None
        queue.acknowledge(delivery)


def test_a_certificate_of_another_host_is_not_trusted(tls_options: RabbitOptions) -> None:
    # The certificate is for 127.0.0.1 and broker.test.
    with (
        opened(replace(tls_options, host="localhost")) as queue,
        pytest.raises(QueueUnavailable, match="check RABBITMQ_CA_FILE and the host's name"),
    ):
        queue.publish(b"{}")


def test_an_authority_that_is_not_ours_is_not_trusted(
    tls_options: RabbitOptions, tmp_path: Path
) -> None:
    tls = TlsOptions(ca_file=Authority(tmp_path, "another").certificate)
    with (
        opened(replace(tls_options, tls=tls)) as queue,
        pytest.raises(QueueUnavailable, match=r"cannot be trusted \(.*check RABBITMQ_CA_FILE"),
    ):
        queue.publish(b"{}")


def test_without_the_required_client_certificate_the_error_has_a_remedy(
    tls_options: RabbitOptions, node: Node
) -> None:
    tls = TlsOptions(ca_file=node.authority.certificate)
    with (
        opened(replace(tls_options, tls=tls)) as queue,
        pytest.raises(QueueUnavailable, match=r"certificate|TLS"),
    ):
        queue.publish(b"{}")


def test_a_tls_port_is_recognised_by_a_client_without_tls(
    tls_options: RabbitOptions,
) -> None:
    with (
        opened(replace(tls_options, tls=None, response_timeout=30.0)) as queue,
        pytest.raises(QueueUnavailable, match="the TLS setting"),
    ):
        queue.publish(b"{}")
