"""Whose turn it is: one at a time, in the order of asking."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from adapters.diffusion.together.turns import Turns

LONG = 30.0
"""Seconds that no test waits."""


def test_one_at_a_time() -> None:
    turns, inside, most = Turns(), [0], [0]

    def work(_: int) -> None:
        for _ in range(200):
            with turns:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert most == [1]


def test_who_has_it_may_take_it_again_and_gives_it_up_only_at_the_end() -> None:
    turns, came = Turns(), threading.Event()

    def other() -> None:
        with turns:
            came.set()

    waiting = threading.Thread(target=other)
    with turns:
        with turns:
            waiting.start()
        assert not came.wait(0.05)
    assert came.wait(LONG)
    waiting.join(LONG)


def test_who_gives_it_up_and_wants_it_again_comes_after_those_who_wait() -> None:
    turns, order = Turns(), []

    def other(name: str) -> None:
        with turns:
            order.append(name)

    waiting = [threading.Thread(target=other, args=(name,)) for name in "ab"]
    with turns:
        for number, thread in enumerate(waiting, start=2):
            thread.start()
            while len(turns._line) < number:
                pass
    with turns:
        order.append("again")
    for thread in waiting:
        thread.join(LONG)
    assert order == ["a", "b", "again"]
