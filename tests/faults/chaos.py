"""The faults, a few lines each: how they begin, and how they end or are repaired."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.deployment import SEEDS, Deployment, Order, garbage
from tests.faults.pool import Pool, Slot
from tests.services.backend_faults import Fault, response
from tests.services.http_faults import Rule, internal_error, s3_error, slow_down

SILENT = 300
"""Connections to one status page: more than it keeps open."""


@dataclass
class Chaos:
    """Injects one fault after another; ``maintain`` ends those with a duration."""

    deployment: Deployment
    pool: Pool
    rng: random.Random
    publish: Callable[[bytes], None]
    next_style: Callable[[], int]
    done: dict[str, int] = field(default_factory=dict)
    """Number of faults by kind."""
    garbage: list[bytes] = field(default_factory=list)
    """Published messages that are not tasks."""
    unwanted: list[Order] = field(default_factory=list)
    """Cancelled tasks, some of them cancelled too late."""
    hostile: list[Order] = field(default_factory=list)
    """Tasks with too few images beside those that cost memory or time, or cannot be decoded."""
    unhealthy: int = 0
    """Health checks that a worker with silent connections did not answer."""
    _until: dict[str, tuple[float, Callable[[], None]]] = field(default_factory=dict)

    def one(self, orders: list[Order]) -> None:
        """Inject a random fault."""
        kind = self.rng.choice(list(self._kinds()))
        self._kinds()[kind](orders)
        self.done[kind] = self.done.get(kind, 0) + 1

    def maintain(self) -> None:
        """End the faults that have lasted long enough."""
        for name, (moment, end_fault) in list(self._until.items()):
            if time.monotonic() >= moment:
                del self._until[name]
                end_fault()

    def heal(self) -> None:
        """End all faults."""
        for name, (_, end_fault) in list(self._until.items()):
            del self._until[name]
            end_fault()
        self.deployment.proxy.clear()
        self.deployment.backend.misbehave()
        self.pool.heal()

    @property
    def pending(self) -> bool:
        """Whether any fault is active."""
        return bool(self._until)

    def _kinds(self) -> dict[str, Callable[[list[Order]], None]]:
        return {
            "kill -9": lambda _: self.pool.kill(self._slot()),
            "sigterm": lambda _: self.pool.terminate(self._slot()),
            "pause": lambda _: self.pool.pause(self._slot(), self.rng.uniform(1, 8)),
            "broker restarted": lambda _: self._restart_broker(),
            "connections closed": lambda _: self._close_connections(),
            "delivery timed out": lambda _: self._time_out_deliveries(),
            "published again": self._publish_again,
            "s3": lambda _: self._break_s3(),
            "cut off from s3": lambda _: self._cut_off(),
            "backend": lambda _: self._break_backend(),
            "garbage": lambda _: self._publish_garbage(),
            "cancelled": lambda _: self._cancel(),
            "hostile images": lambda _: self._publish_hostile_images(),
            "silent connections": lambda _: self._connect_silently(),
            "clock jump": lambda _: self.pool.jump(
                self._slot(), self.rng.choice([-7200, -60, 60, 7200])
            ),
        }

    def _slot(self) -> Slot:
        return self.rng.choice(self.pool.slots)

    def _restart_broker(self) -> None:
        if "broker" in self._until:
            return
        self._until.pop("timeout", None)  # a restarted broker has its default timeout
        if self.rng.random() < 0.5:
            self.deployment.broker.kill()
        else:
            self.deployment.broker.stop()
        moment = time.monotonic() + self.rng.uniform(0, 4)
        self._until["broker"] = (moment, self.deployment.broker.start)

    def _close_connections(self) -> None:
        if "broker" not in self._until:
            self.deployment.broker.close_connections()

    def _time_out_deliveries(self) -> None:
        if "broker" in self._until or "timeout" in self._until:
            return
        self.deployment.consumer_timeout(1)
        moment = time.monotonic() + 3
        self._until["timeout"] = (moment, lambda: self.deployment.consumer_timeout(1800))

    def _ensure_broker(self) -> None:
        """Start the broker if needed: publishing needs it, and nothing else would start it."""
        if "broker" in self._until:
            _, start = self._until.pop("broker")
            start()

    def _publish_again(self, orders: list[Order]) -> None:
        self._ensure_broker()
        order = self.rng.choice(orders)
        for _ in range(self.rng.choice([1, 1, 4])):
            self.publish(order.body)

    def _break_s3(self) -> None:
        chance = self.rng.choice([0.3, 1.0])
        faults = [
            lambda: internal_error(probability=chance),
            lambda: slow_down(1, probability=chance),
            lambda: s3_error("XMinioStorageFull", 507, method="PUT", probability=chance),
            lambda: Rule(fault="hang", seconds=3, probability=chance),
            lambda: Rule(fault="cut", method="GET", probability=chance),
            lambda: Rule(fault="reset_before", probability=chance),
            lambda: Rule(fault="reset_after", probability=chance),
        ]
        rule = self.rng.choice(faults)()
        self.deployment.proxy.rules(rule, seed=self.rng.randrange(2**31))
        moment = time.monotonic() + self.rng.uniform(0.5, 5)
        self._until["s3"] = (moment, self.deployment.proxy.clear)

    def _cut_off(self) -> None:
        """Cut one worker off from the store; the other workers get its messages. If the store
        cannot distinguish workers, cut off all."""
        sender = self._slot().access_key if self.deployment.store.distinguishes_workers else ""
        rule = Rule(fault="reset_before", sender=sender)
        self.deployment.proxy.rules(rule)
        self._close_connections()
        moment = time.monotonic() + self.rng.uniform(4, 12)
        self._until["s3"] = (moment, self.deployment.proxy.clear)

    def _break_backend(self) -> None:
        faults = [
            response(500),
            response(429, retry_after="1"),
            Fault("hang", seconds=4),
            Fault("reset_before"),
            Fault("reset_after"),
            Fault("hang_after", seconds=4),
        ]
        among = self.rng.sample(faults, 2)
        self.deployment.backend.misbehave(
            probability=self.rng.choice([0.5, 1.0]), among=among, seed=self.rng.randrange(2**31)
        )
        moment = time.monotonic() + self.rng.uniform(0.5, 5)
        self._until["backend"] = (moment, self.deployment.backend.misbehave)

    def _publish_garbage(self) -> None:
        self._ensure_broker()
        body = garbage(self.rng, self.next_style())
        self.garbage.append(body)
        self.publish(body)

    def _publish_hostile_images(self) -> None:
        self._ensure_broker()
        order = self.deployment.hostile_order(self.next_style(), self.rng)
        self.hostile.append(order)
        self.publish(order.body)

    def _connect_silently(self) -> None:
        slot = self._slot()
        clients = self.pool.connect(slot, SILENT)
        if clients:
            self.unhealthy += not self.pool.is_healthy(slot)

        def close() -> None:
            for client in clients:
                client.close()

        moment = time.monotonic() + self.rng.uniform(2, 8)
        self._until[f"silence {moment}"] = (moment, close)

    def _cancel(self) -> None:
        """Publish another task and cancel it a moment later."""
        self._ensure_broker()
        order = self.deployment.order(self.next_style(), self.rng.choice(SEEDS), self.rng)
        self.unwanted.append(order)
        self.publish(order.body)
        moment = time.monotonic() + self.rng.uniform(0, 8)
        self._until[f"cancel {order.style_id}"] = (moment, lambda: self.deployment.cancel(order))


def readable_style(body: bytes) -> int | None:
    """The style to report to the backend, if the message names one."""
    try:
        message = json.loads(body)
    except ValueError:
        return None
    if not isinstance(message, dict) or message.get("type") != "model_training":
        return None
    style: int = message["data"]["style_id"]
    return style
