"""Which request meets which fault, and what came by: the rules of the HTTP proxy."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Fault = Literal["answer", "hang", "cut", "corrupt", "reset_before", "reset_after"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One fault and the requests that meet it. The first rule that fits is applied."""

    fault: Fault
    """``answer``: the answer below, and the server hears nothing. ``hang``: no answer for
    ``seconds``, then the end of the connection. ``cut``: half of the server's body.
    ``corrupt``: one byte of it is another. ``reset_before``, ``reset_after``: the connection is
    reset, and the server has not heard of the request, or has processed it."""
    method: str = ".*"
    """Regular expression for the whole method."""
    target: str = ""
    """Regular expression found somewhere in path and query."""
    sender: str = ""
    """Regular expression found in the header Authorization, which names the access key."""
    skip: int = 0
    """How many fitting requests pass before the first is hit."""
    times: int | None = None
    """How many are hit; None: all that come."""
    probability: float = 1.0
    """Of a hit, drawn from the seed given with the rules."""
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    seconds: float = 30.0


def s3_error(
    code: str,
    status: int,
    *,
    extra: str = "",
    headers: Mapping[str, str] | None = None,
    **when: Any,
) -> Rule:
    """The rule that gives S3's own answer for an error."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f"<Error><Code>{code}</Code><Message>told by a test</Message>{extra}</Error>"
    )
    heads = {"Content-Type": "application/xml", **(headers or {})}
    return Rule(fault="answer", status=status, body=body, headers=heads, **when)


def internal_error(**when: Any) -> Rule:
    """S3 fails."""
    return s3_error("InternalError", 500, **when)


def slow_down(retry_after: int | None = None, **when: Any) -> Rule:
    """S3 asks for fewer requests."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return s3_error("SlowDown", 503, headers=headers, **when)


def access_denied(**when: Any) -> Rule:
    """S3 refuses."""
    return s3_error("AccessDenied", 403, **when)


@dataclass(frozen=True)
class Seen:
    """One request that came by."""

    method: str
    target: str
    headers: Mapping[str, str]
    fault: Fault | None
    status: int | None
    """Of the answer sent; None when there was none."""
    sent: int
    """Bytes of its body that the client's side took."""


class Plan:
    """The rules in force, how often each was met, and what was seen."""

    def __init__(self, rules: Sequence[Rule] = (), seed: int = 0) -> None:
        self.over = threading.Event()
        """Set when another plan is in force: nobody hangs any longer."""
        self._rules = rules
        self._met = [0] * len(rules)
        self._hit = [0] * len(rules)
        self._random = random.Random(seed)
        self._seen: list[Seen] = []
        self._under_way = 0
        self._lock = threading.Condition()

    def choose(self, method: str, target: str, sender: str = "") -> Rule | None:
        """The rule that this request meets, if any."""
        with self._lock:
            self._under_way += 1
            for number, rule in enumerate(self._rules):
                if not re.fullmatch(rule.method, method) or not re.search(rule.target, target):
                    continue
                if not re.search(rule.sender, sender):
                    continue
                self._met[number] += 1
                if self._met[number] <= rule.skip or self._hit[number] == rule.times:
                    continue
                if self._random.random() < rule.probability:
                    self._hit[number] += 1
                    return rule
        return None

    def note(self, seen: Seen) -> None:
        """Remember a request."""
        with self._lock:
            self._under_way -= 1
            self._seen.append(seen)
            self._lock.notify_all()

    def seen(self) -> list[Seen]:
        """What was remembered. A client may have an answer a moment before we noted it."""
        with self._lock:
            self._lock.wait_for(lambda: self._under_way == 0, timeout=2)
            return list(self._seen)
