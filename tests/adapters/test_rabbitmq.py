"""Broker options, queue names, and how sessions are replaced; no broker is needed."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pika
import pytest
from pika import exceptions
from pika.adapters.utils.connection_workflow import (
    AMQPConnectorSocketConnectError,
    AMQPConnectorStackTimeout,
    AMQPConnectorTransportSetupError,
)
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker

from adapters.clock import SystemClock
from adapters.memory import ManualClock
from adapters.rabbitmq.connection import PUMP_SECONDS, Connection
from adapters.rabbitmq.errors import SessionEnded, explain, is_expected
from adapters.rabbitmq.inbox import Inbox
from adapters.rabbitmq.options import RabbitOptions, TlsOptions
from adapters.rabbitmq.session import Session
from adapters.rabbitmq.topology import Topology
from application.ports import Delivery, DeliveryLost, QueueUnavailable
from tests.services.waiting import eventually


def test_a_url_names_everything() -> None:
    options = RabbitOptions.from_url("amqp://us%40er:p%2Fw@broker.example:5673/a%2Fb", heartbeat=2)
    assert (options.host, options.port, options.vhost) == ("broker.example", 5673, "a/b")
    assert (options.user, options.password, options.tls) == ("us@er", "p/w", None)
    assert options.heartbeat == 2


@pytest.mark.parametrize("path", ["", "/", "/%2F"])
def test_a_url_without_a_virtual_host_means_the_default_one(path: str) -> None:
    options = RabbitOptions.from_url(f"amqp://broker.example{path}")
    assert options == RabbitOptions(host="broker.example")
    assert options.where == "broker.example:5672"


def test_a_tls_url_has_the_tls_port_by_default() -> None:
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
        ("amqp://u:s3cret@broker.example/v#w", "has a query"),
    ],
)
def test_an_invalid_url_is_rejected_without_showing_its_password(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        RabbitOptions.from_url(url)
    assert "s3cret" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_tls_options_for_a_url_without_tls_are_rejected() -> None:
    with pytest.raises(ValueError, match="without TLS: write amqps://"):
        RabbitOptions.from_url("amqp://broker.example", tls=TlsOptions())


def test_the_password_is_not_in_the_repr() -> None:
    options = RabbitOptions(password="s3cret")
    assert "s3cret" not in f"{options!r} {options} {options.where}"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"port": 0}, "port=0"),
        ({"port": 65536}, "port=65536"),
        ({"retry_delays": ()}, "retry_delays="),
        ({"retry_delays": (5.0, 1.0)}, "retry_delays="),
        ({"retry_delays": (1.0, 1.0)}, "retry_delays="),
        ({"retry_delays": (0.0, 1.0)}, "retry_delays="),
        ({"heartbeat": 0}, "heartbeat=0"),
        ({"heartbeat": 65536}, "heartbeat=65536"),
        ({"connect_timeout": 0}, "connect_timeout=0"),
        ({"first_reconnect_delay": 0}, "first_reconnect_delay=0"),
        ({"max_reconnect_delay": 0}, "max_reconnect_delay=0"),
        ({"ack_timeout": 0}, "ack_timeout=0"),
        ({"response_timeout": -1.0}, "response_timeout=-1.0"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}.*: give "):
        RabbitOptions(**wrong)


@pytest.mark.parametrize("number", [1, 65535])
def test_the_protocols_minimum_and_maximum_are_accepted(number: int) -> None:
    options = RabbitOptions(port=number, heartbeat=number, retry_delays=(0.001,))
    assert options.effective_port == number
    assert RabbitOptions(queue="q" * 200).queue == "q" * 200


@pytest.mark.parametrize(
    "host", ["", "amqp://broker.example", "broker.example:5672", "u@broker.example", "[::1]"]
)
def test_a_host_is_a_name_or_an_address_only(host: str) -> None:
    with pytest.raises(ValueError, match="give the host's name"):
        RabbitOptions(host=host)
    assert RabbitOptions(host="::1").where == "::1:5672"


@pytest.mark.parametrize("queue", ["", "amq.mine", "ß" * 101])
def test_an_invalid_queue_name_is_rejected(queue: str) -> None:
    with pytest.raises(ValueError, match="give a name of at most 200 bytes"):
        RabbitOptions(queue=queue)


def test_a_key_without_its_certificate_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"key='mine\.key': give the certificate"):
        TlsOptions(key=Path("mine.key"))


def test_retry_delays_are_rounded_up_and_named_by_their_length() -> None:
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


class FakeSession:
    """A session without a broker, which ends on request."""

    def __init__(self) -> None:
        self.serving = threading.Event()
        self.busy = threading.Lock()
        self.over: Exception | None = None
        self.closed = False
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1
        self.serving.set()

    def match_receivers(self) -> None:
        pass

    def pump(self, seconds: float) -> None:
        self.serving.wait(seconds)
        self.serving.clear()
        with self.busy:
            if self.over is not None:
                raise self.over

    def close(self) -> None:
        self.closed = True


class Sessions:
    """Opens sessions and records them."""

    def __init__(self) -> None:
        self.all: list[FakeSession] = []
        self.ended = 0

    def open(self) -> Any:
        self.all.append(FakeSession())
        return self.all[-1]

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def sessions() -> Sessions:
    return Sessions()


@pytest.fixture
def connection(sessions: Sessions) -> Iterator[Connection]:
    options = RabbitOptions(response_timeout=0.5, first_reconnect_delay=0.01)
    made = Connection(options, sessions.open, sessions.end, SystemClock(), lambda: 0.0)
    yield made
    made.close()


def test_a_timed_out_call_is_dropped_and_its_delivery_requeued(
    sessions: Sessions, connection: Connection
) -> None:
    assert connection.call(lambda _: "connected") == "connected"
    (session,) = sessions.all
    done: list[object] = []
    with session.busy, pytest.raises(QueueUnavailable, match=r"no response.*\(connected\)"):
        connection.call(done.append, lost=DeliveryLost("lost"))
    eventually(lambda: (sessions.ended, len(sessions.all)) == (1, 2))
    assert session.closed
    assert done == []


def test_a_closed_session_is_reported_and_replaced(
    sessions: Sessions, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    connection.call(lambda _: None)
    for number in (1, 2):
        session = sessions.all[-1]
        session.over = ConnectionResetError("cut")
        session.wake()
        expected = (number, number + 1)
        # mypy cannot infer a lambda with a default.
        eventually(lambda expected=expected: (sessions.ended, len(sessions.all)) == expected)  # type: ignore[misc]
        assert session.closed
    assert caplog.text.count("retrying until connected") == 2


def test_reconnect_delays_grow_and_the_problem_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries: list[float] = []

    def reject() -> Any:
        tries.append(time.monotonic())
        raise ConnectionRefusedError

    options = RabbitOptions(first_reconnect_delay=0.01)
    connection = Connection(options, reject, lambda: None, SystemClock(), lambda: 1.0)
    with pytest.raises(QueueUnavailable, match="the connection was refused"):
        connection.call(lambda _: None)
    eventually(lambda: len(tries) == 6)
    connection.close()
    pauses = [after - before for before, after in pairwise(tries)]
    assert all(pause >= 0.01 * 2**number for number, pause in enumerate(pauses))
    assert caplog.text.count("retrying until connected") == 1


def test_a_call_runs_at_once_and_a_closed_connection_does_nothing(
    sessions: Sessions, connection: Connection
) -> None:
    begun = time.monotonic()
    for _ in range(10):
        connection.call(lambda _: None)
    connection.close()
    assert time.monotonic() - begun < 3 * PUMP_SECONDS
    assert sessions.all[0].closed
    with pytest.raises(QueueUnavailable, match="this queue is closed"):
        connection.call(lambda _: None)
    with pytest.raises(DeliveryLost):
        connection.call(lambda _: None, lost=DeliveryLost("lost"))


@pytest.mark.parametrize(
    ("error", "lost", "expected"),
    [
        (ConnectionResetError("cut"), None, QueueUnavailable),
        (ConnectionResetError("cut"), DeliveryLost("lost"), DeliveryLost),
        (SessionEnded("full"), DeliveryLost("lost"), QueueUnavailable),
    ],
)
def test_a_call_that_breaks_the_session_raises_the_cause(
    sessions: Sessions,
    connection: Connection,
    error: Exception,
    lost: Exception | None,
    expected: type[Exception],
) -> None:
    def fail(_: object) -> None:
        raise error

    connection.call(lambda _: None)
    with pytest.raises(expected):
        connection.call(fail, lost=lost)
    eventually(lambda: (sessions.ended, len(sessions.all)) == (1, 2))


def test_calls_waiting_for_a_session_fail_with_it(
    sessions: Sessions, connection: Connection
) -> None:
    connection.call(lambda _: None)
    (session,) = sessions.all
    done: list[object] = []
    with ThreadPoolExecutor(1) as pool:
        with session.busy:
            waiting = pool.submit(connection.call, done.append, lost=DeliveryLost("lost"))
            eventually(lambda: session.woken == 1)
            session.over = ConnectionResetError("cut")
        with pytest.raises(DeliveryLost, match="lost"):
            waiting.result()
    assert done == []


def test_a_thread_that_was_suspended_while_it_received_gets_its_message() -> None:
    clock = ManualClock()
    inbox = Inbox(clock)

    def suspend() -> None:
        clock.advance(3600.0)
        assert inbox.missing() == 0
        inbox.put(Delivery("1", b"{}"))

    assert inbox.take(1.0, suspend) == Delivery("1", b"{}")


def test_a_session_counts_as_connected_before_its_first_message() -> None:
    found: list[Exception | None] = []

    class Delivering(FakeSession):
        """Messages arrive while ``pump`` runs."""

        def pump(self, seconds: float) -> None:
            try:
                opened.check()
                found.append(None)
            except QueueUnavailable as error:
                found.append(error)
            super().pump(seconds)

    open_session: Any = Delivering
    opened = Connection(RabbitOptions(), open_session, lambda: None, SystemClock(), lambda: 0.0)
    opened.open()
    eventually(lambda: found)
    opened.close()
    assert found[0] is None, "a message that arrives now can be settled"


@pytest.fixture
def amqp(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A mock in place of pika's connection."""
    made = MagicMock()
    monkeypatch.setattr(pika, "BlockingConnection", lambda _: made)
    return made


def open_session(receiving: int = 1, **options: Any) -> Session:
    """A session with as many threads that receive."""
    inbox, together = Inbox(SystemClock()), threading.Barrier(receiving)

    def wait() -> None:
        together.wait()

    with ThreadPoolExecutor(receiving) as pool:
        for _ in range(receiving):
            pool.submit(inbox.take, 0.0, wait)
    return Session(RabbitOptions(**options), Topology("tasks", (5.0,)), "worker", inbox)


def test_the_consumer_requests_a_longer_timeout(amqp: MagicMock) -> None:
    open_session(ack_timeout=7200.0).pump(0.0)
    arguments = amqp.channel.return_value.basic_consume.call_args.kwargs["arguments"]
    assert arguments == {"x-consumer-timeout": 7_200_000}


def test_if_the_broker_rejects_the_timeout_argument_all_consumers_start_without_it(
    amqp: MagicMock,
) -> None:
    channels = amqp.channel.side_effect = [MagicMock() for _ in range(4)]
    _publisher, rejected, *consumers = channels
    for channel in channels:
        channel.basic_consume.return_value = f"tag {id(channel)}"
    text = "PRECONDITION_FAILED - invalid arg 'x-consumer-timeout' for queue 'tasks' in vhost '/'"
    rejected.basic_consume.side_effect = ChannelClosedByBroker(406, text)
    open_session(receiving=2).pump(0.0)
    for consumer in consumers:
        assert not consumer.basic_consume.call_args.kwargs["arguments"]


def test_a_consumer_rejected_for_another_reason_is_rejected(amqp: MagicMock) -> None:
    rejection = ChannelClosedByBroker(403, "ACCESS_REFUSED - read access to queue 'tasks'")
    amqp.channel.return_value.basic_consume.side_effect = rejection
    with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
        open_session().pump(0.0)


def test_a_session_that_cannot_declare_its_queues_leaves_no_connection(amqp: MagicMock) -> None:
    rejection = ChannelClosedByBroker(406, "other arguments")
    amqp.channel.return_value.queue_declare.side_effect = rejection
    with pytest.raises(ChannelClosedByBroker):
        open_session()
    amqp.close.assert_called_once()


def test_counting_the_messages_leaves_no_channel(amqp: MagicMock) -> None:
    publisher, side = amqp.channel.side_effect = [MagicMock(), MagicMock()]
    open_session().depths()
    side.close.assert_called_once()
    publisher.close.assert_not_called()


def rejected(code: int, text: str) -> ConnectionClosedByBroker:
    return ConnectionClosedByBroker(code, text)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SessionEnded("it was replaced"), "it was replaced$"),
        (exceptions.AuthenticationError("PLAIN"), "it rejects user 'guest'"),
        (exceptions.ProbableAuthenticationError(), "it rejects user 'guest'"),
        (
            exceptions.ProbableAccessDeniedError("(530) vhost a not found"),
            "it has no virtual host '/': create it",
        ),
        (
            exceptions.ProbableAccessDeniedError("(530) access refused"),
            r"user 'guest' has no access to virtual host '/': grant .*\(\(530\) access refused\)",
        ),
        (exceptions.IncompatibleProtocolError(), "does not speak AMQP .*check the port"),
        (socket.gaierror(-2, "unknown"), r"name was not found \(unknown\): check the host"),
        (ConnectionRefusedError(111, "refused"), "the connection was refused: start the broker"),
        (AMQPConnectorStackTimeout(), "no response in time: check the host, the port"),
        (TimeoutError(), "no response in time: check the host, the port"),
        (exceptions.ConnectionBlockedTimeout(), "memory or disk alarm"),
        (exceptions.AMQPHeartbeatTimeout(), "no heartbeat arrived"),
        (exceptions.StreamLostError("reset"), r"the connection was cut \(reset\)$"),
        (exceptions.StreamLostError(), r"the connection was cut \(StreamLostError\)$"),
        (OSError(113, "No route to host"), "No route to host$"),
        (
            rejected(406, "delivery on channel 1 timed out"),
            "raise consumer_timeout in its configuration",
        ),
        (
            rejected(406, "inequivalent arg 'x' for queue 'model_training' in vhost '/'"),
            "correct the queue's name, or move the messages",
        ),
        (
            rejected(406, "inequivalent arg 'x' for queue 'model_training.dead' in vhost '/'"),
            "delete it when it is empty",
        ),
        (rejected(406, "invalid arg 'x' for queue 'model_training'"), "it rejects this call"),
        (rejected(403, "no"), "'guest' lacks permissions: grant configure, write, read"),
        (rejected(320, "shutdown"), r"it closed the connection \(320\) shutdown$"),
        (ChannelClosedByBroker(404, "no"), r"it closed the channel or connection \(404\) no$"),
        (exceptions.AMQPConnectionError(), "AMQPConnectionError: "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_wrapped_errors_are_reported_with_a_remedy(error: Exception, message: str) -> None:
    options = RabbitOptions(host="broker.example", password="s3cret")
    for wrapped in (
        error,
        exceptions.AMQPConnectionError(AMQPConnectorSocketConnectError(error)),
        exceptions.AMQPConnectionError(AMQPConnectorTransportSetupError(error)),
    ):
        expected = explain(wrapped, options)
        assert re.match(f"RabbitMQ at broker.example:5672: .*{message}", expected)
        assert is_expected(wrapped)
        assert "s3cret" not in expected


def test_a_defect_is_not_taken_for_a_network_error() -> None:
    assert not is_expected(KeyError("x"))
