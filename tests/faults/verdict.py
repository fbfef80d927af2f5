"""The campaign's result, counted from what the store, the backend and the broker recorded."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from tests.faults.chaos import readable_style
from tests.faults.deployment import Order
from tests.faults.reference import WITHIN_ROUNDING, distance
from tests.services.backend import Call

HARMLESS = ("runs", "faults", "max_together", "repeated_with_key", "farthest", "remarks")


@dataclass
class Verdict:
    """The counts of the closing line; all except those in ``HARMLESS`` must be zero."""

    runs: int
    faults: int
    max_together: int = 0
    """Runs that one worker trained at a time; 0 if it trains only one."""
    lost: int = 0
    """Tasks whose style was not announced as ready to the backend."""
    trained_twice: int = 0
    """Tasks trained again after their weights were stored."""
    announced_twice: int = 0
    """`complete` and `failed` calls that the backend accepted again without need."""
    repeated_with_key: int = 0
    """Such calls accepted again with the same key, after a lost response or worker."""
    wrong_weights: int = 0
    """Styles that differ from an undisturbed run's."""
    farthest: float = 0.0
    """Largest distance of the correct styles from an undisturbed run's."""
    stuck: int = 0
    """Messages, leases and tasks left over."""
    undead: int = 0
    """Messages that are not tasks and are missing among the dead letters, or tasks among them."""
    unhealthy: int = 0
    """Health checks that a worker with silent connections did not answer."""
    odd_exits: int = 0
    """Workers that ended unexpectedly."""
    remarks: list[str] = field(default_factory=list)
    """Errors, one line each."""

    @property
    def good(self) -> bool:
        """Whether there are no errors."""
        counts = asdict(self)
        return not any(count for name, count in counts.items() if name not in HARMLESS)

    def line(self) -> str:
        """The closing line."""
        counts = asdict(self)
        del counts["remarks"]
        counts["farthest"] = f"{self.farthest:.1g}"
        return " ".join(f"{name}={count}" for name, count in counts.items())

    def judge_calls(
        self,
        orders: Sequence[Order],
        failing: Sequence[bytes],
        unwanted: Sequence[Order],
        calls: Iterable[Call],
        violence: Sequence[float],
    ) -> None:
        """Check that every task is announced as ready, every other message with a style as failed,
        and every cancelled task as one of the two."""
        by_style: dict[int | None, list[Call]] = defaultdict(list)
        for call in calls:
            if call.accepted and call.kind != "progress":
                by_style[call.style_id].append(call)
        wanted = {order.style_id: ["complete"] for order in orders}
        wanted |= {style: ["failed"] for body in failing if (style := readable_style(body))}
        wanted |= {order.style_id: ["complete", "failed"] for order in unwanted}
        for style, kinds in wanted.items():
            accepted = by_style.pop(style, [])
            if {call.kind for call in accepted} not in [{kind} for kind in kinds]:
                self.lost += 1
                actual = [(call.kind, call.body) for call in accepted]
                self.remarks.append(f"style {style}: {actual}, not {' or '.join(kinds)}")
            self._judge_repeats(style, accepted, violence)
        for style, accepted in by_style.items():
            self.announced_twice += len(accepted)
            self.remarks.append(f"style {style} was announced without a task")

    def _judge_repeats(self, style: int, accepted: list[Call], violence: Sequence[float]) -> None:
        for before, after in pairwise(accepted):
            same = before.idempotency_key and before.idempotency_key == after.idempotency_key
            response_lost = before.response != 200
            worker_lost = any(before.at - 5 <= moment <= after.at for moment in violence)
            if same and (response_lost or worker_lost):
                self.repeated_with_key += 1
            else:
                self.announced_twice += 1
                self.remarks.append(f"style {style} was announced again: {before} {after}")

    def judge_order_of_calls(self, calls: Iterable[Call]) -> None:
        """Check that no progress follows a `complete` or `failed` call."""
        ended = set()
        for call in calls:
            if call.accepted and call.kind != "progress":
                ended.add(call.style_id)
            elif call.accepted and call.style_id in ended:
                self.announced_twice += 1
                self.remarks.append(f"style {call.style_id}: progress after its outcome")

    def judge_training(self, orders: Sequence[Order], log: str) -> None:
        """Check that no stored style is trained again."""
        for order in orders:
            lines = [line for line in log.splitlines() if order.task_id in line]
            stored = sum("weights stored at" in line for line in lines)
            if stored > 1:
                self.trained_twice += 1
                self.remarks.append(
                    f"style {order.style_id}: its weights were stored {stored} times"
                )

    def judge_batching(self, log: str) -> None:
        """Count how many runs a worker has trained at a time."""
        found = re.findall(r"(\d+) runs train together", log)
        self.max_together = max(map(int, found), default=0)

    def judge_weights(self, order: Order, found: bytes, wanted: bytes, together: int) -> None:
        """Check a style against an undisturbed run's: by value, if runs share their passes."""
        far = distance(found, wanted)
        if found == wanted or (together > 1 and far <= WITHIN_ROUNDING):
            self.farthest = max(self.farthest, far)
            return
        self.wrong_weights += 1
        self.remarks.append(
            f"style {order.style_id} is not that of an undisturbed run (distance {far:.2g})"
        )

    def judge_dead(
        self, orders: Sequence[Order], garbage: Sequence[bytes], dead: set[bytes]
    ) -> None:
        """Check that the dead letters are exactly the messages that are not tasks."""
        missing = [body for body in garbage if body not in dead]
        wrong = [order for order in orders if order.body in dead]
        self.undead += len(missing) + len(wrong)
        self.remarks += [f"not among the dead letters: {body[:200]!r}" for body in missing]
        self.remarks += [f"style {order.style_id} is among the dead letters" for order in wrong]

    def judge_exits(self, exits: Sequence[tuple[int, int]]) -> None:
        """Check that workers run until they are stopped."""
        self.odd_exits += len(exits)
        self.remarks += [f"worker {slot} ended with {code}" for slot, code in exits]


def tracebacks(log: str) -> int:
    """Number of defects that the log shows, which matter even if the result is right."""
    return log.count("Traceback (most recent call last)")
