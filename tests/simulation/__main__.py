"""``python -m tests.simulation``: many runs, or one run in detail."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter

from domain.events import ProgressMade
from tests.simulation.run import Run
from tests.simulation.verdict import repeats, violations
from tests.simulation.world import STEPS


def main() -> int:
    """Print errors and a closing line. Returns 1 if there were errors."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first (default: 0)")
    parser.add_argument("--show", action="store_true", help="show what happens in the first run")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.show:
        return _show(options.seed)
    began, wrong, repeated, hours, steps, needed = time.monotonic(), 0, 0, 0.0, 0, 0
    kinds = Counter[str]()
    for seed in range(options.seed, options.seed + options.runs):
        run = Run(seed)()
        hours += run.world.timeline.now / 3600
        steps, needed = steps + run.world.steps, needed + STEPS * len(run.world.tasks)
        repeated += repeats(run)
        kinds.update(done.kind for done in run.chaos.done)
        if lines := violations(run):
            wrong += 1
            print(f"seed {seed}:", *lines, sep="\n  ", flush=True)
    print(", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items())))
    print(
        f"runs={options.runs} wrong={wrong} repeated_with_key={repeated} "
        f"disturbances={kinds.total()} "
        f"steps={steps / needed:.2f} of what is needed, "
        f"{hours:.0f} h simulated in {time.monotonic() - began:.0f} s"
    )
    return 1 if wrong else 0


def _show(seed: int) -> int:
    run = Run(seed)()
    lines = []
    for done in run.chaos.done:
        whom = "" if done.who is None else f", {done.who.name}"
        lines.append((done.begins, f"    {done.kind} {done.detail}{whom}"))
    for at, who, what in run.world.events:
        if not isinstance(what, ProgressMade):
            lines.append((at, f"{who.name}: style {what.style_id} {type(what).__name__}"))
    for call in run.world.calls:
        about = f"style {call.style_id}, {call.kind}"
        lines.append((call.made_at, f"{call.caller.name}: calls, {about}"))
        if call.accepted_at is not None:
            lines.append((call.accepted_at, f"the backend accepts: {about}"))
    for moment, line in sorted(lines):
        print(f"{moment:9.1f} s  {line}")
    found = violations(run)
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
