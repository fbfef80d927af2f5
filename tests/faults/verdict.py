"""What the campaign has to show for itself, counted from what others saw: S3, backend, broker."""

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
    """The counts of the closing line; all that are not in ``HARMLESS`` must be zero."""

    runs: int
    faults: int
    max_together: int = 0
    """Runs that one worker trained at a time; 0 where it trains one only."""
    lost: int = 0
    """Tasks of which the backend was not told that the style is ready."""
    trained_twice: int = 0
    """Tasks that were trained again after their weights were stored."""
    announced_twice: int = 0
    """Final calls that the backend took again without need."""
    repeated_with_key: int = 0
    """Final calls taken again, with the same key, because an answer or a worker was lost."""
    wrong_weights: int = 0
    """Styles that are not what an undisturbed run gives."""
    farthest: float = 0.0
    """Of the right ones, the largest distance to that."""
    stuck: int = 0
    """Messages, leases and tasks left over."""
    undead: int = 0
    """Messages that are no task and are not among the dead letters, or tasks that are."""
    odd_exits: int = 0
    """Workers that ended although nobody asked them to."""
    remarks: list[str] = field(default_factory=list)
    """What was wrong, a line each."""

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
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
        garbage: Sequence[bytes],
        unwanted: Sequence[Order],
        calls: Iterable[Call],
        violence: Sequence[float],
    ) -> None:
        """Every task is announced as ready, what names a style but is no task as failed, and
        what was cancelled as one of the two."""
        by_style: dict[int | None, list[Call]] = defaultdict(list)
        for call in calls:
            if call.taken and call.kind != "progress":
                by_style[call.style_id].append(call)
        wanted = {order.style_id: ["complete"] for order in orders}
        wanted |= {style: ["failed"] for body in garbage if (style := readable_style(body))}
        wanted |= {order.style_id: ["complete", "failed"] for order in unwanted}
        for style, kinds in wanted.items():
            taken = by_style.pop(style, [])
            if {call.kind for call in taken} not in [{kind} for kind in kinds]:
                self.lost += 1
                told = [(call.kind, call.body) for call in taken]
                self.remarks.append(f"style {style}: {told}, not {' or '.join(kinds)}")
            self._judge_repeats(style, taken, violence)
        for style, taken in by_style.items():
            self.announced_twice += len(taken)
            self.remarks.append(f"style {style} was announced, and nobody asked for it")

    def _judge_repeats(self, style: int, taken: list[Call], violence: Sequence[float]) -> None:
        for before, after in pairwise(taken):
            same = before.idempotency_key and before.idempotency_key == after.idempotency_key
            answer_lost = before.answer != 200
            worker_lost = any(before.at - 5 <= moment <= after.at for moment in violence)
            if same and (answer_lost or worker_lost):
                self.repeated_with_key += 1
            else:
                self.announced_twice += 1
                self.remarks.append(f"style {style} was announced again: {before} {after}")

    def judge_order_of_calls(self, calls: Iterable[Call]) -> None:
        """No progress after the end."""
        ended = set()
        for call in calls:
            if call.taken and call.kind != "progress":
                ended.add(call.style_id)
            elif call.taken and call.style_id in ended:
                self.announced_twice += 1
                self.remarks.append(f"style {call.style_id}: progress after the final call")

    def judge_training(self, orders: Sequence[Order], log: str) -> None:
        """Nobody trains what is stored already."""
        for order in orders:
            lines = [line for line in log.splitlines() if order.task_id in line]
            stored = sum("weights stored at" in line for line in lines)
            if stored > 1:
                self.trained_twice += 1
                self.remarks.append(
                    f"style {order.style_id}: its weights were stored {stored} times"
                )

    def judge_company(self, log: str) -> None:
        """How many runs a worker has trained at a time."""
        found = re.findall(r"(\d+) runs train together", log)
        self.max_together = max(map(int, found), default=0)

    def judge_weights(self, order: Order, found: bytes, wanted: bytes, together: int) -> None:
        """A style is what an undisturbed run gives: by value, where runs share their passes."""
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
        """All that is no task is there, and no task is."""
        missing = [body for body in garbage if body not in dead]
        wrong = [order for order in orders if order.body in dead]
        self.undead += len(missing) + len(wrong)
        self.remarks += [f"not among the dead letters: {body[:200]!r}" for body in missing]
        self.remarks += [f"style {order.style_id} is among the dead letters" for order in wrong]

    def judge_exits(self, exits: Sequence[tuple[int, int]]) -> None:
        """Workers stay until they are asked to go."""
        self.odd_exits += len(exits)
        self.remarks += [f"worker {slot} ended with {code}" for slot, code in exits]


def tracebacks(log: str) -> int:
    """How many defects the log shows; worth a look even where the end is right."""
    return log.count("Traceback (most recent call last)")
