"""The rules that `check_history` holds a history against, one function each; every one yields what breaks it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from abswitch.domain import RequestRecord, RouteRecord, TokenChunk, TransitionRecord
from abswitch.errors import InvalidInput
from abswitch.testing.history_report import Violation, ViolationKind

# The words of the rows, written out: a checker that took them from the code it judges would follow its mistakes.
PINNED = "pinned"  # requests that named their version themselves; routes do not bind them
SHADOW = "shadow"  # copies that no user may see
_WHOLE = ("stop", "length")
_LEAVING = ("promoting", "rolling back")
_RESTART = "restart"
_SAME_S = 1e-5
"""Wall-clock instants are told apart down to this: a double has a quarter of a microsecond left after 1970."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the clients saw; fields as the arguments of `check_history`."""

    sent: frozenset[str]
    answers: tuple[tuple[str, str], ...]
    failed: frozenset[str] | None
    refused: frozenset[str]
    left: frozenset[str]
    streams: Mapping[str, Sequence[TokenChunk]] = field(default_factory=dict)

    @cached_property
    def texts(self) -> dict[str, str]:
        """Request id → the answer its client got."""
        return dict(self.answers)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One epoch of one model, in force on [from_s, until_s]; `at_s` is the wall clock's word for `from_s`."""

    epoch: int
    operation_id: str | None
    at_s: float
    from_s: float
    until_s: float
    versions: Mapping[str, str]
    """Arm → version."""

    def covers(self, instant_s: float) -> bool:
        # Closed at both ends: with equal clock readings the rows cannot tell which came first.
        return self.from_s <= instant_s <= self.until_s

    def overlaps(self, from_s: float, until_s: float) -> bool:
        return self.from_s <= until_s and from_s <= self.until_s

    def reachable(self, *, copy: bool) -> set[str]:
        """The versions that may serve: users' requests never the shadow's, copies only that."""
        return {version for arm, version in self.versions.items() if (arm == SHADOW) is copy}


Snapshots = Mapping[str, Mapping[int, Snapshot]]
"""Model → epoch → snapshot, in order of epochs."""


def is_copy(row: RequestRecord) -> bool:
    """Whether the row is of a shadow's copy."""
    return row.arm == SHADOW or row.pair_id is not None


def _may_serve(row: RequestRecord, snapshot: Snapshot) -> bool:
    return row.served_version in snapshot.reachable(copy=is_copy(row))


# --- what is there at all ---------------------------------------------------------------------------------------------


def counts(rows: Sequence[RequestRecord], seen: Seen) -> Iterator[Violation]:
    """One row for each request that was admitted, and none besides."""
    recorded = Counter(row.request_id for row in rows)
    users = {row.request_id for row in rows if not is_copy(row)}
    answers = Counter(request_id for request_id, _ in seen.answers)
    for request_id in sorted(seen.sent - recorded.keys() - seen.refused - seen.left):
        told = "the client got an answer" if request_id in answers else "the client got no answer"
        yield Violation(ViolationKind.LOST, request_id, f"sent, but there is no row of it; {told}")
    for request_id in sorted((users | answers.keys()) - seen.sent):
        yield Violation(ViolationKind.NEVER_SENT, request_id, "no client sent it")
    for request_id in sorted(seen.refused & recorded.keys()):
        yield Violation(ViolationKind.REFUSED_YET_ADMITTED, request_id, "the client was turned away, yet it has a row")
    for what, numbers in (("rows", recorded), ("answers", answers)):
        for request_id, n in numbers.items():
            if n > 1:
                yield Violation(ViolationKind.DUPLICATED, request_id, f"{n} {what}")


def ends(seen: Seen) -> Iterator[Violation]:
    """Each request that was sent ended in exactly one way for its client."""
    if seen.failed is None:
        return
    ways = {"answered": set(seen.texts), "failed": seen.failed, "refused": seen.refused, "left": seen.left}
    for request_id in sorted(seen.sent):
        ended = [way for way, ids in ways.items() if request_id in ids]
        if len(ended) != 1:
            told = " and ".join(ended) or "the client never heard how it ended"
            yield Violation(ViolationKind.ENDS, request_id, told)


def one_end(row: RequestRecord) -> Iterator[Violation]:
    """A row says how its request ended, once."""
    if row.error_type is None and row.finish_reason is None:
        yield Violation(ViolationKind.ENDS, row.request_id, "its row has neither an answer's end nor an error")
    if row.error_type is not None and row.finish_reason in _WHOLE:
        what = f"its row says finished ({row.finish_reason}) and failed ({row.error_type})"
        yield Violation(ViolationKind.ENDS, row.request_id, what)


# --- what reached the client ------------------------------------------------------------------------------------------


def delivery(row: RequestRecord, text: str | None, *, left: bool) -> Iterator[Violation]:
    """What the row says of the answer is what the client saw."""
    kind = ViolationKind.ANSWER_DISAGREES
    if row.error_type is not None and text is not None:
        yield Violation(kind, row.request_id, f"recorded as failed ({row.error_type}), but the client got an answer")
    whole = row.error_type is None and row.finish_reason in _WHOLE
    if whole and text is None and not left and not is_copy(row):
        yield Violation(kind, row.request_id, "recorded as answered, but the client got none")
    if whole and row.served_version is None:
        yield Violation(kind, row.request_id, "recorded as answered, but by no version")
    if row.output is not None and text is not None and row.error_type is None and row.output != text:
        yield Violation(kind, row.request_id, f"recorded {row.output!r}, the client saw {text!r}")


def sequence(row: RequestRecord, chunks: Sequence[TokenChunk] | None, text: str | None) -> Iterator[Violation]:
    """The client got chunks 0, 1, 2, … of one answer, and the last one alone said that it was over."""
    breaks = [] if chunks is None else list(_breaks(row, chunks, text))
    if breaks:
        yield Violation(ViolationKind.BROKEN_SEQUENCE, row.request_id, "; ".join(breaks))


def _breaks(row: RequestRecord, chunks: Sequence[TokenChunk], text: str | None) -> Iterator[str]:
    told = [chunk.index for chunk in chunks]
    if told != list(range(len(told))):
        yield f"chunks {told}"
    tokens = 0
    for chunk in chunks:
        if chunk.output_tokens < tokens or (chunk.token_ids and chunk.output_tokens != tokens + len(chunk.token_ids)):
            yield f"chunk {chunk.index}: {chunk.output_tokens} tokens after {tokens}"
        tokens = chunk.output_tokens
    ended = [chunk.finish_reason is not None for chunk in chunks]
    if any(ended[:-1]) or (text is not None and not any(ended[-1:])):
        yield f"the end is told at chunks {[at for at, one in enumerate(ended) if one]} of {len(chunks)}"
    joined = "".join(chunk.text for chunk in chunks)
    if text is not None and (joined != text or tokens != row.output_tokens):
        yield f"{tokens} tokens {joined!r}, where the answer has {row.output_tokens}: {text!r}"
    if text is None and (tokens > row.output_tokens or not (row.output or joined).startswith(joined)):
        yield f"{tokens} tokens {joined!r}, where the row has {row.output_tokens}: {row.output!r}"


# --- copies -----------------------------------------------------------------------------------------------------------


def copies(rows: Sequence[RequestRecord], seen: Seen) -> Iterator[Violation]:
    """A shadow's copy belongs to one request of a user, and no user gets it."""
    users = {row.request_id for row in rows if not is_copy(row)} | seen.sent
    per_request: Counter[str | None] = Counter()
    for row in filter(is_copy, rows):
        if row.request_id in seen.texts or row.request_id in seen.streams or row.request_id in seen.sent:
            yield Violation(ViolationKind.COPY_SHOWN, row.request_id, f"a copy on {row.served_version}")
        per_request[row.pair_id] += 1
        if row.arm != SHADOW or row.pair_id not in users or per_request[row.pair_id] > 1 or row.fallback:
            what = f"arm {row.arm}, of {row.pair_id}, copy {per_request[row.pair_id]} of it, fallback={row.fallback}"
            yield Violation(ViolationKind.STRAY_COPY, row.request_id, what)


# --- labels -----------------------------------------------------------------------------------------------------------


def label(row: RequestRecord, epochs: Mapping[int, Snapshot], asked: Sequence[str] | None) -> Iterator[Violation]:
    """A row is a fallback exactly when something else than what it was assigned to answered, and says who did."""
    if row.served_version is None:
        return
    told = f"assigned {row.assigned_version}, served {row.served_version}, fallback={row.fallback}"
    if asked is not None:
        wrong = row.fallback != (len(asked) > 1) or list(asked[-1:]) != [row.served_version]
        told += f", asked in turn: {', '.join(asked) or 'nobody'}"
    elif row.served_version != row.assigned_version:
        wrong = not row.fallback
    else:
        wrong = row.fallback and not _may_have_come_back(row, epochs)
    if wrong:
        yield Violation(ViolationKind.MISLABELLED, row.request_id, told)


def _may_have_come_back(row: RequestRecord, epochs: Mapping[int, Snapshot]) -> bool:
    """Whether the version may have died and been started again under the request."""
    began_s, ended_s = _span(row)
    renewed = any(began_s < one.from_s <= ended_s for one in epochs.values())
    return renewed or row.switch_path == _RESTART or row.arm == PINNED


def _span(row: RequestRecord) -> tuple[float, float]:
    return row.admitted_mono_s, row.admitted_mono_s + max(0.0, row.total_s - row.queue_s)


# --- routes -----------------------------------------------------------------------------------------------------------


def route(row: RequestRecord, epochs: Mapping[int, Snapshot]) -> Iterator[Violation]:
    """The request met the arm of the snapshot in force when it was admitted, and a version routable then served it."""
    if row.arm == PINNED:
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
    yield from _served(row, snapshot, in_force, epochs)


def _served(
    row: RequestRecord, by_epoch: Snapshot, by_time: list[Snapshot], epochs: Mapping[int, Snapshot]
) -> Iterator[Violation]:
    if row.served_version is None:
        return
    if row.fallback:
        # A retry may fall into a later snapshot: any that was in force while the request was under way may serve it.
        by_time = [s for s in epochs.values() if s.overlaps(*_span(row))] + _way_back(row, epochs)
    kind = ViolationKind.UNROUTABLE
    if not row.fallback and not _may_serve(row, by_epoch):
        what = f"{row.served_version}, but epoch {row.route_epoch} has {dict(by_epoch.versions)}"
        yield Violation(kind, row.request_id, what)
    elif not any(_may_serve(row, s) for s in by_time):
        known = sorted({version for s in by_time for version in s.reachable(copy=is_copy(row))})
        yield Violation(kind, row.request_id, f"{row.served_version}, but by the clock only {known} could serve")


def _way_back(row: RequestRecord, epochs: Mapping[int, Snapshot]) -> list[Snapshot]:
    """The snapshot after a fallback, if it no longer has the version that died: the stable version answers at once, and
    a turn of the loop later the operation that the death ended has gone back."""
    _, ended_s = _span(row)
    following = next((s for s in epochs.values() if s.from_s > ended_s), None)
    gone = following is not None and row.assigned_version not in following.versions.values()
    return [following] if following is not None and gone else []


def snapshot_order(snapshots: Snapshots) -> Iterator[Violation]:
    """A later epoch came later."""
    for model_id, epochs in snapshots.items():
        for snapshot in epochs.values():
            if snapshot.until_s < snapshot.from_s:
                what = f"committed at {snapshot.from_s}, the next one at {snapshot.until_s}"
                yield Violation(ViolationKind.BACKWARDS, f"{model_id} epoch {snapshot.epoch}", what)


def admission_order(rows: Sequence[RequestRecord]) -> Iterator[Violation]:
    """No request is admitted by a snapshot that another one had already been replaced for."""
    newest: dict[str, int] = defaultdict(int)
    routed = (row for row in rows if row.arm != PINNED)
    for row in sorted(routed, key=lambda row: (row.admitted_mono_s, row.route_epoch)):
        if row.route_epoch < newest[row.model_id]:
            what = f"admitted by epoch {row.route_epoch} after another was admitted by epoch {newest[row.model_id]}"
            yield Violation(ViolationKind.BACKWARDS, row.request_id, what)
        newest[row.model_id] = max(newest[row.model_id], row.route_epoch)


def let_go(row: RequestRecord, closed: Mapping[str, float]) -> Iterator[Violation]:
    """Nothing is admitted to an operation's arms after its way back (or its promotion) was committed, or it drains."""
    since_s = closed.get(row.operation_id or "", math.inf)
    if row.admitted_at_s > since_s + _SAME_S:
        what = f"{row.arm}={row.assigned_version} at {row.admitted_at_s}; {row.operation_id} let go of it at {since_s}"
        yield Violation(ViolationKind.LET_GO, row.request_id, what)


def closings(moves: Sequence[TransitionRecord], snapshots: Snapshots) -> dict[str, float]:
    """Operation → when it let go of its arms, by the wall clock; infinity while it has not."""
    closed: dict[str, float] = {}
    for move in sorted(moves, key=lambda move: (move.operation_id, move.sequence)):
        known = closed.setdefault(move.operation_id, math.inf)
        if move.phase_to == "draining":
            closed[move.operation_id] = min(known, move.at_s)
        elif move.phase_to in _LEAVING:
            epochs = snapshots.get(move.model_id, {}).values()
            after = (s.at_s for s in epochs if s.at_s >= move.at_s - _SAME_S and s.operation_id != move.operation_id)
            closed[move.operation_id] = min((known, *after))
    return closed


def snapshots(routes: Sequence[RouteRecord]) -> dict[str, dict[int, Snapshot]]:
    """The routing snapshots that the rows tell of.

    Raises:
        InvalidInput: an epoch appears twice.
    """
    grouped: dict[str, dict[int, list[RouteRecord]]] = defaultdict(lambda: defaultdict(list))
    for one in routes:
        grouped[one.model_id][one.epoch].append(one)
    return {model_id: _snapshots_of(epochs) for model_id, epochs in grouped.items()}


def _snapshots_of(epochs: Mapping[int, list[RouteRecord]]) -> dict[int, Snapshot]:
    order = sorted(epochs)
    heads = [epochs[epoch][0] for epoch in order]
    starts_s = [head.committed_mono_s for head in heads] + [math.inf]
    return {
        epoch: Snapshot(
            epoch, head.operation_id, head.committed_at_s, starts_s[i], starts_s[i + 1], _versions(epochs[epoch])
        )
        for i, (epoch, head) in enumerate(zip(order, heads, strict=True))
    }


def _versions(arms: list[RouteRecord]) -> dict[str, str]:
    versions = {arm.arm: arm.version for arm in arms if arm.share > 0.0}
    if len({arm.arm for arm in arms}) < len(arms) or len({arm.committed_mono_s for arm in arms}) > 1:
        where = f"{arms[0].model_id} epoch {arms[0].epoch}"
        raise InvalidInput("routes", where, "each arm of an epoch once, committed at one time (rows of one process)")
    return versions


# --- texts ------------------------------------------------------------------------------------------------------------


class Oracle:
    """Compares answers with the texts that versions are known to give."""

    def __init__(self, truth: Mapping[tuple[str, str], str], prompts: Mapping[str, str]) -> None:
        self._truth = truth
        self._prompts = prompts
        self.checked = 0

    def check(self, row: RequestRecord, text: str | None) -> Iterator[Violation]:
        """The answer is that of the version that the row names; of a copy, the recorded one."""
        prompt = self._prompts.get(row.request_id, row.prompt)
        if is_copy(row) and row.error_type is None:
            text = row.output
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
