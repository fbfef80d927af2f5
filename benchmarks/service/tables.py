"""The results of `benchmarks.service` as Markdown tables."""

from __future__ import annotations

from typing import Any

SPEEDS = (
    "| store | backlog | workers | tasks/s | plain pika consumer, messages/s |\n"
    "| --- | --- | --- | --- | --- |\n"
)
NO_SPEEDS = "The speeds have not been measured on a quiet machine yet.\n"


def service_tables(results: dict[str, Any]) -> str:
    """The speeds, and the calls per job."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    rows = "".join(
        f"| {row['store']} | {row['backlog']} | {row['workers']} | {row['tasks_per_s']} | "
        f"{row['bare_messages_per_s']} |\n"
        for row in results["rows"]
    )
    calls = "".join(
        f"| {name} | {count:g} |\n" for name, count in sorted(results["calls"].items())
    )
    return (
        f"Measured on {results['date']}, {results['cores']} cores, {versions}; "
        f"{results['images']} images with captions and {results['epochs']} epochs per task.\n\n"
        f"{SPEEDS + rows if rows else NO_SPEEDS}\n"
        f"| calls per job | |\n| --- | --- |\n{calls}"
        f"| all | {sum(results['calls'].values()):g} |\n"
    )
