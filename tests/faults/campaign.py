"""The fault campaign: `python -m tests.faults.campaign --runs 100`.

Worker processes share a queue while brokers, stores, backends, clocks and the workers themselves
fail at random moments. At the end every task must have been announced once, with the weights of an
undisturbed run: byte for byte, or, with `--together 3`, where jobs share their passes, within
rounding.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pika.exceptions import AMQPError

from tests.faults.chaos import Chaos
from tests.faults.deployment import (
    BROKER_FLAGS,
    FIRST_STYLE,
    SEED_OF_ANOTHER_KIND,
    SEEDS,
    Deployment,
    Order,
    a_deployment,
)
from tests.faults.pool import Pool
from tests.faults.reference import expected, references
from tests.faults.verdict import Verdict, tracebacks
from tests.services.broker import own_broker

MIN_WAVE = 4
"""Minimum number of concurrent tasks; more if needed to fill all slots and make one task wait."""
MAX_RUNS = 2000


@dataclass
class Campaign:
    """One campaign over one deployment."""

    deployment: Deployment
    pool: Pool
    rng: random.Random
    say: Callable[[str], None]
    together: int = 1
    """Maximum number of jobs that one worker trains at a time."""
    orders: list[Order] = field(default_factory=list)
    _style: int = FIRST_STYLE + len(SEEDS)

    def run(self, runs: int, references: dict[int, bytes]) -> Verdict:
        """Run ``runs`` tasks under faults."""
        chaos = Chaos(
            self.deployment, self.pool, self.rng, self.deployment.publish, self._next_style
        )
        self.pool.maintain()
        left_over = 0
        size = max(MIN_WAVE, self.together * self.pool.size + 1)
        while len(self.orders) < runs:
            wave = [self._order() for _ in range(min(size, runs - len(self.orders)))]
            left_over += self._wave(wave, chaos)
        late = self.rng.sample(self.orders, min(len(self.orders), 5))
        for order in late:
            self.deployment.publish(order.body)
        left_over += not self._wait_for_quiet(time.monotonic() + 120)
        self.pool.stop()
        return self._judge(references, chaos, left_over)

    def _wave(self, wave: list[Order], chaos: Chaos) -> int:
        """Publish some tasks under faults and wait for them. Returns the number not done."""
        for order in wave:
            self.deployment.publish(order.body)
        self.orders += wave
        budget = len(wave) * 4
        peace = time.monotonic() + 90
        while budget and time.monotonic() < peace and not self._all_done(wave):
            time.sleep(self.rng.uniform(0.2, 1.6))
            self.pool.maintain()
            chaos.maintain()
            chaos.one(wave)
            budget -= 1
        while chaos.pending and time.monotonic() < peace:
            time.sleep(0.2)
            self.pool.maintain()
            chaos.maintain()
        chaos.heal()
        deadline = time.monotonic() + 60 * max(MIN_WAVE, len(wave))
        while not self._all_done(wave):
            if time.monotonic() > deadline:
                break
            time.sleep(0.3)
            self.pool.maintain()
        undone = len(wave) - sum(order.style_id in self._ready() for order in wave)
        quiet = self._wait_for_quiet(deadline)
        self.say(
            f"{len(self.orders)} tasks, {sum(chaos.done.values())} faults"
            f"{'' if not undone and quiet else f', {undone} undone, quiet: {quiet}'}"
        )
        return undone + (not quiet)

    def _judge(self, references: dict[int, bytes], chaos: Chaos, left_over: int) -> Verdict:
        verdict = Verdict(len(self.orders), sum(chaos.done.values()), stuck=left_over)
        calls, log = self.deployment.backend.calls, self.pool.logs()
        tasks = self.orders + chaos.unwanted + chaos.hostile
        verdict.unhealthy = chaos.unhealthy
        verdict.judge_calls(
            self.orders,
            [*chaos.garbage, *(order.body for order in chaos.hostile)],
            chaos.unwanted,
            calls,
            self.pool.violent_ends,
        )
        verdict.judge_order_of_calls(calls)
        verdict.judge_training(tasks, log)
        verdict.judge_batching(log)
        verdict.judge_dead(tasks, chaos.garbage, set(self.deployment.dead_letters()))
        verdict.judge_exits(self.pool.odd_exits)
        for name, count in self.deployment.broker.depths().items():
            if count and not name.endswith(".dead"):
                verdict.stuck += count
                verdict.remarks.append(f"{count} messages are left in {name}")
        store = self.deployment.store
        for key in store.names():
            if key.endswith("lease.json"):
                verdict.stuck += 1
                verdict.remarks.append(f"{key} is left")
        for order in self.orders:
            found = store.read(store.weights_key(order.style_id, order.task_id))
            wanted = expected(references, order.seed, order.style_id)
            verdict.judge_weights(order, found, wanted, self.together)
        self.say(", ".join(f"{kind}: {n}" for kind, n in sorted(Counter(chaos.done).items())))
        self.say(f"tracebacks in the workers' logs: {tracebacks(log)}")
        return verdict

    def _all_done(self, wave: list[Order]) -> bool:
        ready = self._ready()
        return all(order.style_id in ready for order in wave)

    def _ready(self) -> set[int | None]:
        return {call.style_id for call in self.deployment.backend.final}

    def _wait_for_quiet(self, deadline: float) -> bool:
        """Wait until all queues but the dead letters are empty, with no unacknowledged messages.

        It must hold twice in a row: queues are counted one after another, and a message that moves
        between two of them can be missed once.
        """
        empty = 0
        while time.monotonic() < deadline:
            self.pool.maintain()
            empty = empty + 1 if self._no_queue_is_full() else 0
            if empty == 2:
                return True
            time.sleep(0.5)
        return False

    def _no_queue_is_full(self) -> bool:
        try:
            counts = self.deployment.broker.depths()
        except AMQPError:  # a queue without a leader yet
            return False
        return not any(count for name, count in counts.items() if not name.endswith(".dead"))

    def _order(self) -> Order:
        seed = self.rng.choice(variants(self.together))
        return self.deployment.order(self._next_style(), seed, self.rng)

    def _next_style(self) -> int:
        self._style += 1
        return self._style


def variants(together: int) -> Sequence[int]:
    """Seeds of the tasks; if runs share the device, one seed is of an incompatible variant."""
    return SEEDS if together == 1 else (*SEEDS, SEED_OF_ANOTHER_KIND)


def main(argv: list[str] | None = None) -> int:
    """Run the campaign and print its closing line. Returns 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description="Disturb workers at random and count the damage.")
    parser.add_argument(
        "--runs", type=int, default=100, help=f"tasks (default: 100, at most {MAX_RUNS})"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--together", type=int, default=1, help="jobs that one worker trains at a time"
    )
    parser.add_argument("--store", choices=("s3", "gcs"), default="s3")
    parser.add_argument("--seed", type=int, help="of all that is random (default: of the clock)")
    parser.add_argument("--keep", type=Path, help="folder for the workers' logs")
    options = parser.parse_args(argv)
    seed = time.time_ns() % 2**32 if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        with (
            own_broker(flags=BROKER_FLAGS) as broker,
            a_deployment(broker, folder, options.store) as deployment,
        ):
            verdict = campaign(
                deployment, options.runs, options.workers, seed, folder, together=options.together
            )
    for remark in verdict.remarks:
        print(f"  {remark}")
    print(verdict.line(), flush=True)
    return 0 if verdict.good else 1


def campaign(
    deployment: Deployment,
    runs: int,
    workers: int,
    seed: int,
    folder: Path,
    *,
    together: int = 1,
    known: dict[int, bytes] | None = None,
) -> Verdict:
    """Start workers, run the tasks under faults, and stop the workers.

    Args:
        folder: the deployment's; also for the workers' logs.
        together: maximum number of jobs that one worker trains at a time.
        known: references of an earlier campaign; missing ones are added.
    """
    wanted = {} if known is None else known
    missing = [variant for variant in variants(together) if variant not in wanted]
    if missing:
        wanted |= references(deployment, folder / "reference", missing)
    pool = Pool(workers, deployment.settings(together), folder / "workers")
    try:
        rng = random.Random(seed)
        run = Campaign(deployment, pool, rng, lambda line: print(line, flush=True), together)
        return run.run(min(runs, MAX_RUNS), wanted)
    finally:
        pool.stop()


if __name__ == "__main__":
    sys.exit(main())
