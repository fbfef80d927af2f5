"""Which acknowledgement timeout applies in which RabbitMQ version, and how the worker handles it.

The tables in docs/operate.md, "The acknowledgement timeout", show these results.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from typing import Literal

import pytest

from adapters.rabbitmq.options import RabbitOptions
from application.ports import DeliveryLost
from tests.faults.broker.node import QUORUM
from tests.services.broker import Broker
from tests.services.queues import opened, receive
from tests.services.waiting import eventually

pytestmark = pytest.mark.faults

Kind = Literal["classic", "quorum"]
Source = Literal["consumer", "policy", "broker"]
"""Source of the timeout: the consumer's argument, a policy, or the broker's own setting."""

SECONDS = 2.0
LONG = 3600.0
QUIET_SECONDS = 6.0
"""Time within which an applicable timeout takes effect: the node checks every second."""

kinds = pytest.mark.parametrize("kind", ["classic", "quorum"])


@pytest.fixture
def options(broker: Broker) -> RabbitOptions:
    return RabbitOptions(
        port=broker.port,
        queue=f"test.{uuid.uuid4().hex[:8]}",
        retry_delays=(0.2,),
        first_reconnect_delay=0.1,
        ack_timeout=LONG,
    )


def applies(version: tuple[int, ...], kind: Kind, source: Source) -> bool:
    """Whether a timeout set by ``source`` applies to a queue of this kind.

    The worker's consumer always sets one: ACK_TIMEOUT.
    """
    if version >= (4, 3):
        return kind == "quorum" and source == "consumer"
    return source in ("policy", "broker")


@kinds
@pytest.mark.parametrize("source", ["consumer", "policy", "broker"])
def test_a_message_is_requeued_by_the_consumer_timeouts(
    broker: Broker,
    options: RabbitOptions,
    kind: Kind,
    source: Source,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = replace(options, vhost="/" if kind == "classic" else QUORUM)
    if source == "policy" and broker.version < (3, 11, 15):
        pytest.skip("RabbitMQ has this policy from 3.11.15 on")
    counts = applies(broker.version, kind, source)
    milliseconds = round(SECONDS * 1000)
    match source:
        case "consumer":
            options = replace(options, ack_timeout=SECONDS)
        case "policy":
            value = json.dumps({"consumer-timeout": milliseconds})
            policy = ("-p", options.vhost, "timeout", f"^{options.queue}$", value)
            broker.control("set_policy", *policy, "--priority", "1")
        case "broker":
            broker.evaluate(f"application:set_env(rabbit, consumer_timeout, {milliseconds})")
    try:
        with opened(options) as queue:
            queue.publish(b"{}")
            held = receive(queue)
            if not counts:
                assert queue.receive(QUIET_SECONDS) is None
                queue.acknowledge(held)
                return
            # Up to 4.2 the broker closes the channel. From 4.3 on it cancels the consumer, and
            # pika raises nothing: the adapter has to check.
            eventually(lambda: "its acknowledgement timeout" in caplog.text)
            again = receive(queue)
            assert (again.body, again.redelivered) == (b"{}", True)
            with pytest.raises(DeliveryLost):
                queue.retry_later(held, 0.1, "busy")
            queue.acknowledge(again)
            assert sum(queue.depths().values()) == 0
    finally:
        if source == "broker":
            broker.evaluate("application:set_env(rabbit, consumer_timeout, 1800000)")
