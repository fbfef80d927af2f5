"""List dead letters, put them back or drop them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass

from adapters.common.queue_ports import DeadLetterAction, DeadLetters, DeadMessage
from adapters.common.text import printable
from domain.errors import UserError

NAMELESS = "-"
"""Stands for the task id of messages without one."""


@dataclass(frozen=True)
class Row:
    """One printed dead message."""

    task_id: str | None
    since: str | None
    reason: str
    details: dict[str, str]
    body: str
    put_back: bool
    dropped: bool

    def __str__(self) -> str:
        done = "put back" if self.put_back else "dropped" if self.dropped else "dead"
        return printable(f"{done}  {self.since or '-'}  {self.task_id or NAMELESS}  {self.reason}")


def process_dead_letters(
    letters: DeadLetters,
    action: DeadLetterAction,
    task_id: str | None,
    *,
    task_id_of: Callable[[bytes], str | None],
    option: str,
    as_json: bool,
) -> str:
    """Apply an action to the dead letters of a task, and return the output about them.

    Args:
        action: the action; ``DeadLetterAction.KEEP`` only lists them.
        task_id: selects this task's dead letters; ``NAMELESS``: those without an id; None: all.
        task_id_of: reads the task id of a message's body.
        option: the command-line option of the task id, for error messages.

    Raises:
        UserError: the task has no dead letters.
    """
    wanted = None if task_id is None else plain_id(task_id)
    rows: list[Row] = []

    def decide(message: DeadMessage) -> DeadLetterAction:
        own_id = task_id_of(message.body)
        row = Row(
            put_back=action is DeadLetterAction.PUT_BACK,
            dropped=action is DeadLetterAction.DROP,
            task_id=own_id and plain_id(own_id),
            since=message.since.isoformat() if message.since else None,
            reason=message.reason,
            details=dict(message.details),
            body=message.body.decode("utf-8", "replace"),
        )
        if wanted not in (None, row.task_id or NAMELESS):
            return DeadLetterAction.KEEP
        rows.append(row)
        return action

    letters.process_dead_letters(decide)
    if wanted is not None and not rows:
        raise UserError(f"{option} {wanted}: there is no such dead letter; see --dead")
    if as_json:
        return json.dumps([asdict(row) for row in rows], indent=1)
    count = f"{len(rows)} dead letter{'s' * (len(rows) != 1)}"
    done = {
        DeadLetterAction.KEEP: "",
        DeadLetterAction.PUT_BACK: " put back",
        DeadLetterAction.DROP: " dropped",
    }[action]
    return "\n".join([*map(str, rows), f"{count}{done}"])


def plain_id(task_id: str) -> str:
    """A task id in the form used in the log; any other text unchanged."""
    try:
        return str(uuid.UUID(task_id))
    except ValueError:
        return task_id
