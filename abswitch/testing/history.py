"""An independent checker of what an engine recorded: was every request answered once, by a version that could serve it?

It reads rows and what the clients saw, and shares no code with the router whose work it judges.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from abswitch.domain import RequestRecord, RouteRecord
from abswitch.errors import InvalidInput

if TYPE_CHECKING:
    import pandas as pd

_Record = TypeVar("_Record", RequestRecord, RouteRecord)

_PINNED = "pinned"  # the recorded arm of requests that named their version themselves; routes do not bind them
_WHOLE = ("stop", "length")
_SHOWN = 10


class ViolationKind(StrEnum):
    """What can be wrong with a history."""

    LOST = "lost"
    DUPLICATED = "duplicated"
    NEVER_SENT = "never sent"
    ANSWER_DISAGREES = "answer disagrees with its row"
    UNROUTABLE = "served by a version not routable at admission"
    WRONG_TIME = "admitted outside its snapshot's time"
    WRONG_ARM = "assigned arm not in its snapshot"
    BACKWARDS = "snapshots go backwards"
    WRONG_TEXT = "text is not that version's"
    MISLABELLED = "fallback labelled wrongly"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that must not happen; `subject` is a request id, or `model epoch n` for a routing snapshot."""

    kind: ViolationKind
    subject: str
    what: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.kind}: {self.what}"


class HistoryError(AssertionError):
    """A history broke a promise; `report` holds all of it."""

    def __init__(self, report: HistoryReport) -> None:
        self.report = report
        super().__init__(str(report))


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryReport:
    """What was checked, and what was found wrong.

    Attributes:
        sent: requests that clients sent.
        answered: answers that clients saw.
        recorded: rows of requests.
        failed: rows that end in an error.
        fallbacks, pinned: rows so labelled.
        snapshots: routing snapshots, all models together.
        texts_checked: answers compared with the text their version is known to give.
    """

    sent: int
    answered: int
    recorded: int
    failed: int
    fallbacks: int
    pinned: int
    snapshots: int
    texts_checked: int
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong. An empty history is: look at the counts too."""
        return not self.violations

    def count(self, kind: ViolationKind) -> int:
        """How many violations there are of one kind."""
        return sum(violation.kind is kind for violation in self.violations)

    def raise_for_violations(self) -> None:
        """Do nothing, or say what was wrong.

        Raises:
            HistoryError: an `AssertionError` with the counts and the first violations.
        """
        if self.violations:
            raise HistoryError(self)

    def __str__(self) -> str:
        head = (
            f"{self.sent} sent, {self.answered} answered, {self.recorded} rows ({self.failed} failed, "
            f"{self.fallbacks} fallbacks, {self.pinned} pinned), {self.snapshots} snapshots, "
            f"{self.texts_checked} texts compared: "
        )
        if not self.violations:
            return head + "no violation"
        kinds = Counter(violation.kind for violation in self.violations)
        told = [f"  {violation}" for violation in self.violations[:_SHOWN]]
        more = [f"  … and {len(self.violations) - _SHOWN} more"] * (len(self.violations) > _SHOWN)
        return "\n".join([head + ", ".join(f"{n} {kind}" for kind, n in kinds.items()), *told, *more])


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One epoch of one model, in force on [from_s, until_s]."""

    epoch: int
    from_s: float
    until_s: float
    versions: Mapping[str, str]

    def covers(self, instant_s: float) -> bool:
        # Closed at both ends: with equal clock readings the rows cannot tell which came first.
        return self.from_s <= instant_s <= self.until_s

    def overlaps(self, from_s: float, until_s: float) -> bool:
        return self.from_s <= until_s and from_s <= self.until_s


def check_history(
    requests: pd.DataFrame | Iterable[RequestRecord],
    routes: pd.DataFrame | Iterable[RouteRecord],
    *,
    sent: Collection[str],
    answered: Mapping[str, str] | Iterable[tuple[str, str]],
    truth: Mapping[tuple[str, str], str] | None = None,
    prompts: Mapping[str, str] | None = None,
) -> HistoryReport:
    """Check the recorded rows of one process against each other and against what the clients saw.

    Args:
        requests: rows of the table `requests` that belong to the clients' traffic.
        routes: all rows of the table `routes` for the models concerned.
        sent: ids of the requests the clients sent.
        answered: the whole answers they got: request id → text, or pairs where one id may come twice. Requests that
            ended in an error for the client are not in it.
        truth: (version, prompt) → the text that version is known to answer, e.g. under greedy decoding.
        prompts: request id → prompt, for stores that record no text.

    Raises:
        InvalidInput: `requests` or `routes` lack columns, or a model's epoch appears twice (rows of two processes).
    """
    rows = list(_records("requests", requests, RequestRecord))
    snapshots = _snapshots(list(_records("routes", routes, RouteRecord)))
    pairs = list(answered.items() if isinstance(answered, Mapping) else answered)
    texts = dict(pairs)
    oracle = _Oracle(truth or {}, prompts or {})
    found = [
        *_check_counts(rows, set(sent), pairs),
        *_check_snapshot_order(snapshots),
        *_check_admission_order(rows),
    ]
    for row in rows:
        found += _check_delivery(row, texts.get(row.request_id))
        found += _check_label(row)
        found += _check_route(row, snapshots.get(row.model_id, {}))
        found += oracle.check(row, texts.get(row.request_id))
    return HistoryReport(
        sent=len(set(sent)),
        answered=len(pairs),
        recorded=len(rows),
        failed=sum(row.error_type is not None for row in rows),
        fallbacks=sum(row.fallback for row in rows),
        pinned=sum(row.arm == _PINNED for row in rows),
        snapshots=sum(map(len, snapshots.values())),
        texts_checked=oracle.checked,
        violations=tuple(found),
    )


def _check_counts(rows: list[RequestRecord], sent: set[str], pairs: list[tuple[str, str]]) -> Iterator[Violation]:
    recorded = Counter(row.request_id for row in rows)
    seen = Counter(request_id for request_id, _ in pairs)
    for request_id in sorted(sent - recorded.keys()):
        told = "the client got an answer" if request_id in seen else "the client got no answer"
        yield Violation(ViolationKind.LOST, request_id, f"sent, but there is no row of it; {told}")
    for request_id in sorted((recorded.keys() | seen.keys()) - sent):
        yield Violation(ViolationKind.NEVER_SENT, request_id, "no client sent it")
    for what, counts in (("rows", recorded), ("answers", seen)):
        for request_id, n in counts.items():
            if n > 1:
                yield Violation(ViolationKind.DUPLICATED, request_id, f"{n} {what}")


def _check_delivery(row: RequestRecord, text: str | None) -> Iterator[Violation]:
    kind = ViolationKind.ANSWER_DISAGREES
    if row.error_type is not None and text is not None:
        yield Violation(kind, row.request_id, f"recorded as failed ({row.error_type}), but the client got an answer")
    if row.error_type is None and text is None and row.finish_reason in _WHOLE:
        yield Violation(kind, row.request_id, "recorded as answered, but the client got none")
    if row.error_type is None and row.served_version is None and row.finish_reason in _WHOLE:
        yield Violation(kind, row.request_id, "recorded as answered, but by no version")
    if row.output is not None and text is not None and row.error_type is None and row.output != text:
        yield Violation(kind, row.request_id, f"recorded {row.output!r}, the client saw {text!r}")


def _check_label(row: RequestRecord) -> Iterator[Violation]:
    if row.served_version is None:
        return
    differs = row.served_version != row.assigned_version
    if differs != row.fallback:
        what = f"assigned {row.assigned_version}, served {row.served_version}, fallback={row.fallback}"
        yield Violation(ViolationKind.MISLABELLED, row.request_id, what)


def _check_route(row: RequestRecord, epochs: Mapping[int, _Snapshot]) -> Iterator[Violation]:
    if row.arm == _PINNED:
        return
    snapshot = epochs.get(row.route_epoch)
    if snapshot is None:
        yield Violation(ViolationKind.UNROUTABLE, row.request_id, f"epoch {row.route_epoch} was never committed")
        return
    if snapshot.versions.get(row.arm) != row.assigned_version:
        what = f"{row.arm}={row.assigned_version}, but epoch {row.route_epoch} has {dict(snapshot.versions)}"
        yield Violation(ViolationKind.WRONG_ARM, row.request_id, what)
    in_force = [s for s in epochs.values() if s.covers(row.admitted_mono_s)]
    if snapshot not in in_force:
        span = f"{snapshot.from_s}–{snapshot.until_s}"
        what = f"admitted at {row.admitted_mono_s} by epoch {row.route_epoch}, in force {span}"
        yield Violation(ViolationKind.WRONG_TIME, row.request_id, what)
    yield from _check_server(row, snapshot, in_force, epochs)


def _check_server(
    row: RequestRecord, by_epoch: _Snapshot, by_time: list[_Snapshot], epochs: Mapping[int, _Snapshot]
) -> Iterator[Violation]:
    if row.served_version is None:
        return
    if row.fallback:
        # A retry may fall into a later snapshot: any that was in force while the request was under way may serve it.
        ended_s = row.admitted_mono_s + max(0.0, row.total_s - row.queue_s)
        by_time = [s for s in epochs.values() if s.overlaps(row.admitted_mono_s, ended_s)]
    kind = ViolationKind.UNROUTABLE
    if not row.fallback and row.served_version not in by_epoch.versions.values():
        what = f"{row.served_version}, but epoch {row.route_epoch} has {dict(by_epoch.versions)}"
        yield Violation(kind, row.request_id, what)
    elif not any(row.served_version in s.versions.values() for s in by_time):
        known = sorted({version for s in by_time for version in s.versions.values()})
        yield Violation(kind, row.request_id, f"{row.served_version}, but by the clock only {known} could serve")


def _check_snapshot_order(snapshots: Mapping[str, Mapping[int, _Snapshot]]) -> Iterator[Violation]:
    for model_id, epochs in snapshots.items():
        for snapshot in epochs.values():
            if snapshot.until_s < snapshot.from_s:
                what = f"committed at {snapshot.from_s}, the next one at {snapshot.until_s}"
                yield Violation(ViolationKind.BACKWARDS, f"{model_id} epoch {snapshot.epoch}", what)


def _check_admission_order(rows: list[RequestRecord]) -> Iterator[Violation]:
    newest: dict[str, int] = defaultdict(int)
    routed = (row for row in rows if row.arm != _PINNED)
    for row in sorted(routed, key=lambda row: (row.admitted_mono_s, row.route_epoch)):
        if row.route_epoch < newest[row.model_id]:
            what = f"admitted by epoch {row.route_epoch} after another was admitted by epoch {newest[row.model_id]}"
            yield Violation(ViolationKind.BACKWARDS, row.request_id, what)
        newest[row.model_id] = max(newest[row.model_id], row.route_epoch)


class _Oracle:
    """Compares answers with the texts that versions are known to give."""

    def __init__(self, truth: Mapping[tuple[str, str], str], prompts: Mapping[str, str]) -> None:
        self._truth = truth
        self._prompts = prompts
        self.checked = 0

    def check(self, row: RequestRecord, text: str | None) -> Iterator[Violation]:
        prompt = self._prompts.get(row.request_id, row.prompt)
        if row.served_version is None or prompt is None or text is None:
            return
        expected = self._truth.get((row.served_version, prompt))
        if expected is None:
            return
        self.checked += 1
        if text != expected:
            others = [v for (v, p), answer in self._truth.items() if p == prompt and answer == text] or ["no version"]
            what = (
                f"{prompt!r} → {text!r}, which {', '.join(others)} answers; {row.served_version} answers {expected!r}"
            )
            yield Violation(ViolationKind.WRONG_TEXT, row.request_id, what)


def _snapshots(routes: list[RouteRecord]) -> dict[str, dict[int, _Snapshot]]:
    """Model → epoch → snapshot, in order of epochs."""
    grouped: dict[str, dict[int, list[RouteRecord]]] = defaultdict(lambda: defaultdict(list))
    for route in routes:
        grouped[route.model_id][route.epoch].append(route)
    return {model_id: _snapshots_of(epochs) for model_id, epochs in grouped.items()}


def _snapshots_of(epochs: Mapping[int, list[RouteRecord]]) -> dict[int, _Snapshot]:
    order = sorted(epochs)
    starts_s = [epochs[epoch][0].committed_mono_s for epoch in order] + [math.inf]
    return {
        epoch: _Snapshot(epoch, starts_s[i], starts_s[i + 1], _versions(epochs[epoch])) for i, epoch in enumerate(order)
    }


def _versions(arms: list[RouteRecord]) -> dict[str, str]:
    versions = {arm.arm: arm.version for arm in arms if arm.share > 0.0}
    if len({arm.arm for arm in arms}) < len(arms) or len({arm.committed_mono_s for arm in arms}) > 1:
        where = f"{arms[0].model_id} epoch {arms[0].epoch}"
        raise InvalidInput("routes", where, "each arm of an epoch once, committed at one time (rows of one process)")
    return versions


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
