"""A plain pika consumer: `python -m benchmarks.service.bare_consumer PORT QUEUE MESSAGES`.

Waits for a line on standard input, then receives and acknowledges one message at a time. Prints
the time of each acknowledgement as JSON.
"""

from __future__ import annotations

import json
import sys
import time

import pika


def main(port: int, queue: str, messages: int) -> None:
    """Consume ``messages`` messages."""
    ends: list[float] = []
    with pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port)) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        print("ready", flush=True)
        sys.stdin.readline()
        for method, _, _ in channel.consume(queue):
            channel.basic_ack(method.delivery_tag)
            ends.append(time.monotonic())
            if len(ends) == messages:
                break
        channel.cancel()
    print(json.dumps({"ends": ends}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
