"""An independent checker of what an engine recorded: was every request answered once, by a version that could serve it?

It reads rows and what the clients saw (a `Witness` notes that), and shares no code with the router that it judges.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from abswitch.domain import EMPTY, RequestRecord, RouteRecord, TokenChunk, TransitionRecord
from abswitch.errors import InvalidInput
from abswitch.testing import history_rules as rules
from abswitch.testing.history_report import HistoryError, HistoryReport, Violation, ViolationKind

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HistoryError", "HistoryReport", "Violation", "ViolationKind", "check_history"]

_Record = TypeVar("_Record", RequestRecord, RouteRecord, TransitionRecord)


def check_history(
    requests: pd.DataFrame | Iterable[RequestRecord],
    routes: pd.DataFrame | Iterable[RouteRecord],
    *,
    sent: Collection[str],
    answered: Mapping[str, str] | Iterable[tuple[str, str]],
    failed: Collection[str] | None = None,
    refused: Collection[str] = (),
    left: Collection[str] = (),
    streams: Mapping[str, Sequence[TokenChunk]] = EMPTY,
    transitions: pd.DataFrame | Iterable[TransitionRecord] = (),
    attempts: Mapping[str, Sequence[str]] | None = None,
    truth: Mapping[tuple[str, str], str] | None = None,
    prompts: Mapping[str, str] | None = None,
) -> HistoryReport:
    """Check the recorded rows of one process against each other and against what the clients saw.

    Args:
        requests: rows of the table `requests` that belong to the clients' traffic, a shadow's copies included.
        routes: all rows of the table `routes` for the models concerned.
        sent: ids of the requests the clients sent.
        answered: the whole answers they got: request id → text, or pairs where one id may come twice. Requests that
            ended in an error for the client are not in it.
        failed: ids that ended in an error for the client after they were admitted. When given, every request sent must
            have ended in exactly one of the four ways; None (the default) leaves that out.
        refused: ids that were turned away before admission (nothing serves, queue full, waited too long).
        left: ids whose clients went away; they may have been admitted or not.
        streams: request id → the chunks its client got, in order.
        transitions: rows of the table `transitions`; the wall clock must not have jumped meanwhile.
        attempts: request id → versions of the instances that were asked to answer it, in order. Without it a retry on
            the same version is believed where the rows make one possible.
        truth: (version, prompt) → the text that version is known to answer, e.g. under greedy decoding.
        prompts: request id → prompt, for stores that record no text.

    Raises:
        InvalidInput: `requests`, `routes` or `transitions` lack columns, or a model's epoch appears twice (rows of two
            processes).
    """
    rows = list(_records("requests", requests, RequestRecord))
    snapshots = rules.snapshots(list(_records("routes", routes, RouteRecord)))
    closings = rules.closings(list(_records("transitions", transitions, TransitionRecord)), snapshots)
    pairs = list(answered.items() if isinstance(answered, Mapping) else answered)
    seen = rules.Seen(
        sent=frozenset(sent),
        answers=tuple(pairs),
        failed=None if failed is None else frozenset(failed),
        refused=frozenset(refused),
        left=frozenset(left),
        streams=streams,
    )
    oracle = rules.Oracle(truth or {}, prompts or {})
    found = [
        *rules.counts(rows, seen),
        *rules.ends(seen),
        *rules.copies(rows, seen),
        *rules.snapshot_order(snapshots),
        *rules.admission_order(rows),
    ]
    for row in rows:
        text = seen.texts.get(row.request_id)
        epochs = snapshots.get(row.model_id, {})
        found += rules.delivery(row, text, left=row.request_id in seen.left)
        found += rules.one_end(row)
        found += rules.sequence(row, streams.get(row.request_id), text)
        found += rules.label(row, epochs, None if attempts is None else attempts.get(row.request_id, ()))
        found += rules.route(row, epochs)
        found += rules.let_go(row, closings)
        found += oracle.check(row, text)
    return HistoryReport(
        sent=len(seen.sent),
        answered=len(pairs),
        recorded=len(rows),
        failed=sum(row.error_type is not None for row in rows),
        fallbacks=sum(row.fallback for row in rows),
        pinned=sum(row.arm == rules.PINNED for row in rows),
        copies=sum(map(rules.is_copy, rows)),
        snapshots=sum(map(len, snapshots.values())),
        operations=len(closings),
        texts_checked=oracle.checked,
        streams_checked=sum(row.request_id in streams for row in rows),
        violations=tuple(found),
    )


def _records(field: str, rows: pd.DataFrame | Iterable[_Record], kind: type[_Record]) -> Iterator[_Record]:
    import pandas as pd

    if not isinstance(rows, pd.DataFrame):
        yield from rows
        return
    missing = [name for name in kind._fields if name not in rows.columns]
    if missing:
        raise InvalidInput(field, list(rows.columns), f"all columns of the table; missing: {', '.join(missing)}")
    for values in rows[list(kind._fields)].itertuples(index=False, name=None):
        yield kind(*(_plain(value) for value in values))


def _plain(value: Any) -> Any:
    """NULL comes out of a frame as NaN or NA, and numbers as NumPy's."""
    import pandas as pd

    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value
