"""What a recorder takes: rows for the appender, and jobs, which are statements committed together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A row for the appender of `table`, in the order of the table's columns."""

    table: str
    values: Sequence[Any]


class Refusal(NamedTuple):
    """A job is refused when `sql` finds a row; `message` may hold `{0}`, `{1}`, … for the cells of the first."""

    sql: str
    params: Sequence[Any]
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """Statements that are committed together; `done` resolves once they are, or once they are safe in the spool.

    Attributes:
        refusal: asked inside the transaction, before the statements.
    """

    statements: tuple[tuple[str, Sequence[Any]], ...] = ()
    refusal: Refusal | None = None
    done: Future[None] = field(default_factory=Future)

    @property
    def is_barrier(self) -> bool:
        """It writes nothing, and resolves when everything before it is committed."""
        return not self.statements


Item = Row | Job


class Event(NamedTuple):
    """An item with its number: what is applied once, however often it is tried."""

    number: int
    item: Item


def to_text(event: Event) -> str:
    """An event as a line of JSON.

    Raises:
        TypeError: a value that JSON has no word for.
    """
    number, item = event
    if isinstance(item, Row):
        return json.dumps((number, item.table, tuple(item.values)), separators=(",", ":"))
    return json.dumps((number, None, item.statements, item.refusal), separators=(",", ":"))


def of_text(text: str | bytes) -> Event:
    """The event that `to_text` wrote.

    Raises:
        ValueError: it is none.
    """
    number, table, *rest = json.loads(text)
    if table is not None:
        return Event(number, Row(table, rest[0]))
    statements, refusal = rest
    job = Job(tuple((sql, params) for sql, params in statements), None if refusal is None else Refusal(*refusal))
    return Event(number, job)
