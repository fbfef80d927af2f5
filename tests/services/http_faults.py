"""Rules of the HTTP proxy: which request gets which fault, and a record of the requests."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Fault = Literal["response", "hang", "cut", "corrupt", "reset_before", "reset_after"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One fault and the requests that get it. The first matching rule applies."""

    fault: Fault
    """``response``: the response below, without passing the request on. ``hang``: no response for
    ``seconds``, then close the connection. ``cut``: half of the server's body. ``corrupt``: change
    one byte of it. ``reset_before``, ``reset_after``: reset the connection, before or after the
    server has processed the request."""
    method: str = ".*"
    """Regular expression for the whole method."""
    target: str = ""
    """Regular expression to find anywhere in path and query."""
    sender: str = ""
    """Regular expression to find in the header Authorization, which contains the access key."""
    skip: int = 0
    """Number of matching requests that pass before the first fault."""
    times: int | None = None
    """Number of faults; None: unlimited."""
    probability: float = 1.0
    """Probability of a fault, drawn from the seed given with the rules."""
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
    """A rule with S3's own error response."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f"<Error><Code>{code}</Code><Message>injected by a test</Message>{extra}</Error>"
    )
    heads = {"Content-Type": "application/xml", **(headers or {})}
    return Rule(fault="response", status=status, body=body, headers=heads, **when)


def internal_error(**when: Any) -> Rule:
    """S3 fails internally."""
    return s3_error("InternalError", 500, **when)


def slow_down(retry_after: int | None = None, **when: Any) -> Rule:
    """S3 throttles."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return s3_error("SlowDown", 503, headers=headers, **when)


def access_denied(**when: Any) -> Rule:
    """S3 denies access."""
    return s3_error("AccessDenied", 403, **when)


@dataclass(frozen=True)
class Seen:
    """One request through the proxy."""

    method: str
    target: str
    headers: Mapping[str, str]
    fault: Fault | None
    status: int | None
    """Status sent to the client; None if there was none."""
    sent: int
    """Number of body bytes that the client's side took."""


class Plan:
    """The rules in force, how often each applied, and the requests seen."""

    def __init__(self, rules: Sequence[Rule] = (), seed: int = 0) -> None:
        self.over = threading.Event()
        """Set when another plan replaces this one: hanging requests end."""
        self._rules = rules
        self._met = [0] * len(rules)
        self._hit = [0] * len(rules)
        self._random = random.Random(seed)
        self._seen: list[Seen] = []
        self._under_way = 0
        self._lock = threading.Condition()

    def choose(self, method: str, target: str, sender: str = "") -> Rule | None:
        """The rule for this request, if any."""
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
        """Record a request."""
        with self._lock:
            self._under_way -= 1
            self._seen.append(seen)
            self._lock.notify_all()

    def seen(self) -> list[Seen]:
        """The recorded requests. A client may receive a response shortly before it is recorded."""
        with self._lock:
            self._lock.wait_for(lambda: self._under_way == 0, timeout=2)
            return list(self._seen)
