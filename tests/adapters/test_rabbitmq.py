"""Options of the broker, and what its queues are called; no broker is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.rabbitmq.options import RabbitOptions, TlsOptions
from adapters.rabbitmq.topology import Topology


def test_a_url_names_everything() -> None:
    options = RabbitOptions.from_url("amqp://us%40er:p%2Fw@broker.example:5673/a%2Fb", prefetch=2)
    assert (options.host, options.port, options.vhost) == ("broker.example", 5673, "a/b")
    assert (options.user, options.password, options.tls) == ("us@er", "p/w", None)
    assert options.prefetch == 2


@pytest.mark.parametrize("path", ["", "/", "/%2F"])
def test_a_url_without_a_virtual_host_means_the_usual_one(path: str) -> None:
    options = RabbitOptions.from_url(f"amqp://broker.example{path}")
    assert options == RabbitOptions(host="broker.example")
    assert options.where == "broker.example:5672"


def test_a_url_for_tls_brings_its_port() -> None:
    options = RabbitOptions.from_url("amqps://u:p@broker.example")
    assert (options.tls, options.effective_port) == (TlsOptions(), 5671)
    tls = TlsOptions(ca_file=Path("ca.pem"))
    assert RabbitOptions.from_url("amqps://broker.example", tls=tls).tls == tls


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://u:s3cret@broker.example", "give an AMQP URL"),
        ("amqp:///vhost", "give an AMQP URL"),
        ("u:s3cret@broker.example", "give an AMQP URL"),
        ("amqp://u:s3cret@broker.example:port", "host or port is malformed"),
        ("amqp://u:s3cret@[::1", "host or port is malformed"),
        ("amqp://u:s3cret@broker.example:0", "port=0: give a number"),
        ("amqp://u:s3cret@broker.example/v?heartbeat=5", "has a query"),
    ],
)
def test_a_url_that_is_none_is_refused_without_showing_its_password(
    url: str, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        RabbitOptions.from_url(url)
    assert "s3cret" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_tls_given_for_a_url_without_is_refused() -> None:
    with pytest.raises(ValueError, match="without TLS: write amqps://"):
        RabbitOptions.from_url("amqp://broker.example", tls=TlsOptions())


def test_the_password_is_in_no_representation() -> None:
    options = RabbitOptions(password="s3cret")
    assert "s3cret" not in f"{options!r} {options} {options.where}"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"port": 70000}, "port=70000"),
        ({"retry_delays": ()}, "retry_delays="),
        ({"retry_delays": (5.0, 1.0)}, "retry_delays="),
        ({"retry_delays": (0.0, 1.0)}, "retry_delays="),
        ({"heartbeat": 0}, "heartbeat=0"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"ack_timeout": 0}, "ack_timeout=0"),
        ({"answer_timeout": -1.0}, "answer_timeout=-1.0"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}.*: give "):
        RabbitOptions(**wrong)


@pytest.mark.parametrize(
    "host", ["", "amqp://broker.example", "broker.example:5672", "u@broker.example", "[::1]"]
)
def test_a_host_is_a_name_or_an_address_alone(host: str) -> None:
    with pytest.raises(ValueError, match="give the host's name"):
        RabbitOptions(host=host)
    assert RabbitOptions(host="::1").where == "::1:5672"


@pytest.mark.parametrize("queue", ["", "amq.mine", "ß" * 101])
def test_a_name_that_no_queue_of_ours_can_have_is_refused(queue: str) -> None:
    with pytest.raises(ValueError, match="give a name of at most 200 bytes"):
        RabbitOptions(queue=queue)


def test_a_key_without_its_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"key='mine\.key': give the certificate"):
        TlsOptions(key=Path("mine.key"))


def test_the_pauses_are_rounded_up_and_named_by_their_length() -> None:
    topology = Topology("tasks", (0.3, 5.0, 90.0, 120.0, 3600.0))
    assert topology.names == (
        "tasks",
        *("tasks.retry.300ms", "tasks.retry.5s", "tasks.retry.90s", "tasks.retry.2m"),
        *("tasks.retry.1h", "tasks.dead"),
    )
    steps = {0.0: "300ms", 0.3: "300ms", 0.31: "5s", 5.0: "5s", 91.0: "2m", 9999.0: "1h"}
    assert {delay: topology.retry(delay) for delay in steps} == {
        delay: f"tasks.retry.{step}" for delay, step in steps.items()
    }
