"""A queue on the machine's RabbitMQ for each test, with our adapter and a plain channel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from adapters.rabbitmq.options import RabbitOptions
from adapters.rabbitmq.queue import RabbitQueue
from tests.services.queues import opened, own_options, raw_channel


@pytest.fixture
def options() -> Iterator[RabbitOptions]:
    with own_options() as made:
        yield made


@pytest.fixture
def queue(options: RabbitOptions) -> Iterator[RabbitQueue]:
    with opened(options) as made:
        yield made


@pytest.fixture
def raw() -> Iterator[BlockingChannel]:
    with raw_channel() as channel:
        # Publishing then returns only once the broker has the message.
        channel.confirm_delivery()
        yield channel
