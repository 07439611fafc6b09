"""The checker of histories: a clean history passes, and every planted violation is caught, each as what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import pytest

from abswitch.domain import FinishReason, RequestRecord, RouteRecord, TokenChunk, TransitionRecord
from abswitch.errors import InvalidInput
from abswitch.testing.history import HistoryError, HistoryReport, ViolationKind, check_history

K = ViolationKind


def a_route(epoch: int, at_s: float, arm: str, version: str, share: float) -> RouteRecord:
    return RouteRecord("bot", epoch, "op", 0, arm, version, share, 1_700_000_000.0 + at_s, at_s)


def a_row(request_id: str, at_s: float, epoch: int, arm: str, version: str) -> RequestRecord:
    return RequestRecord(
        request_id=request_id,
        model_id="bot",
        operation_id="op",
        step=0,
        route_epoch=epoch,
        arm=arm,
        assigned_version=version,
        served_version=version,
        unit_id=f"unit-{request_id}",
        fallback=False,
        admitted_at_s=1_700_000_000.0 + at_s,
        admitted_mono_s=at_s,
        queue_s=0.1,
        first_token_s=0.2,
        total_s=1.1,
        prompt_tokens=3,
        output_tokens=2,
        finish_reason="stop",
        error_type=None,
        error_message=None,
        prompt="1+1=",
        output=f"answer of {version}",
    )


def a_move(sequence: int, at_s: float, phase_from: str, phase_to: str) -> TransitionRecord:
    return TransitionRecord("op", sequence, "bot", "x", phase_from, phase_to, 0, 0.5, "x", 1_700_000_000.0 + at_s)


def a_copy(of: str, at_s: float, version: str = "v2") -> RequestRecord:
    made = a_row(f"{of}-shadow", at_s, 4, "shadow", version)
    return made._replace(pair_id=of, unit_id=f"unit-{of}")


def chunks_of(text: str) -> list[TokenChunk]:
    """A chunk a word, the last one with the end."""
    words = [word + " " for word in text.split(" ")]
    words[-1] = words[-1].rstrip(" ")
    ends = [None] * (len(words) - 1) + [FinishReason.STOP]
    return [TokenChunk(i, word, (7,), i + 1, 3, end) for i, (word, end) in enumerate(zip(words, ends, strict=True))]


@dataclass
class History:
    """v1 alone from 0, v1 and v2 from 10, v2 alone from 20; three requests in each period.

    From 100 on v2 is stable and v1 its shadow: r10 has a copy. r11 failed, r12 was refused, r13 left.
    """

    routes: list[RouteRecord] = field(default_factory=list)
    rows: list[RequestRecord] = field(default_factory=list)
    answers: list[tuple[str, str]] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    moves: list[TransitionRecord] = field(default_factory=list)
    streams: dict[str, list[TokenChunk]] = field(default_factory=dict)
    attempts: dict[str, list[str]] | None = None

    def change(self, request_id: str, **changes: object) -> None:
        at = next(i for i, row in enumerate(self.rows) if row.request_id == request_id)
        self.rows[at] = self.rows[at]._replace(**changes)  # type: ignore[arg-type]  # names and types are the caller's

    def change_all(self, change: Callable[[RequestRecord], RequestRecord]) -> None:
        self.rows = [change(row) for row in self.rows]

    def answer(self, request_id: str, text: str) -> None:
        self.answers = [(r, text if r == request_id else old) for r, old in self.answers]
        self.streams[request_id] = chunks_of(text)
        self.change(request_id, output_tokens=len(self.streams[request_id]))

    def unanswer(self, request_id: str) -> None:
        self.answers = [pair for pair in self.answers if pair[0] != request_id]

    def check(self, *, as_frames: bool = False) -> HistoryReport:
        truth = {(version, "1+1="): f"answer of {version}" for version in ("v1", "v2")}
        requests = pd.DataFrame(self.rows) if as_frames else self.rows
        routes = pd.DataFrame(self.routes) if as_frames else self.routes
        transitions = pd.DataFrame(self.moves) if as_frames else self.moves
        return check_history(
            requests,
            routes,
            sent=self.sent,
            answered=self.answers,
            failed=self.failed,
            refused=self.refused,
            left=self.left,
            streams=self.streams,
            transitions=transitions,
            attempts=self.attempts,
            truth=truth,
        )


@pytest.fixture
def history() -> History:
    made = History()
    made.routes = [
        a_route(1, 0.0, "stable", "v1", 1.0),
        a_route(2, 10.0, "stable", "v1", 0.5),
        a_route(2, 10.0, "candidate", "v2", 0.5),
        a_route(3, 20.0, "stable", "v2", 1.0)._replace(operation_id=None),
        a_route(4, 100.0, "stable", "v2", 1.0)._replace(operation_id="op-2"),
        a_route(4, 100.0, "shadow", "v1", 0.5)._replace(operation_id="op-2"),
    ]
    made.moves = [
        a_move(1, 9.0, "pending", "loading"),
        a_move(2, 9.5, "warming", "shifting"),
        a_move(3, 19.99, "evaluating", "promoting"),
        a_move(4, 20.0, "promoting", "draining"),
        a_move(5, 21.0, "draining", "succeeded"),
    ]
    for i, (at_s, epoch, arm, version) in enumerate(
        [
            (1.0, 1, "stable", "v1"),
            (5.0, 1, "stable", "v1"),
            (9.99, 1, "stable", "v1"),
            (10.0, 2, "candidate", "v2"),
            (11.0, 2, "stable", "v1"),
            (19.99, 2, "candidate", "v2"),
            (20.0, 3, "stable", "v2"),
            (25.0, 3, "stable", "v2"),
            (99.0, 3, "stable", "v2"),
        ],
        start=1,
    ):
        made.rows.append(a_row(f"r{i}", at_s, epoch, arm, version))
        made.answers.append((f"r{i}", f"answer of {version}"))
    for i, version in ((10, "v2"), (11, "v2"), (13, "v2")):
        made.rows.append(a_row(f"r{i}", 100.0 + i, 4, "stable", version)._replace(operation_id="op-2"))
    made.answers.append(("r10", "answer of v2"))
    made.rows.append(a_copy("r10", 110.5, "v1")._replace(operation_id="op-2"))
    lost = {"error_type": "StreamBroken", "finish_reason": None, "output_tokens": 1, "output": "answer "}
    made.change("r11", **lost)
    made.change("r13", **lost | {"error_type": "Cancelled"})
    made.change_all(lambda row: row._replace(output_tokens=3 if row.error_type is None else 1))
    made.change_all(lambda row: row._replace(operation_id=None) if row.route_epoch == 3 else row)
    made.sent = {f"r{i}" for i in range(1, 14)}
    made.failed, made.refused, made.left = {"r11"}, {"r12"}, {"r13"}
    made.streams = {name: chunks_of(text) for name, text in made.answers}
    made.streams |= {"r11": chunks_of("answer of v2")[:1], "r12": [], "r13": chunks_of("answer of v2")[:1]}
    return made


@pytest.mark.parametrize("as_frames", [False, True])
def test_a_clean_history_passes(history: History, as_frames: bool) -> None:
    history.change("r2", error_type="InstanceDied", served_version=None, finish_reason="error", output=None)
    history.unanswer("r2")
    history.failed.add("r2")
    history.streams["r2"] = []
    report = history.check(as_frames=as_frames)
    assert report.violations == ()
    assert (report.sent, report.answered, report.recorded, report.failed) == (13, 9, 13, 3)
    assert (report.snapshots, report.texts_checked, report.streams_checked, report.copies) == (4, 10, 12, 1)
    assert report.operations == 1
    report.raise_for_violations()
    assert str(report).endswith("no violation")


def _lost(h: History) -> None:
    del h.rows[4]


def _never_recorded_but_answered(h: History) -> None:
    h.sent.add("r14")
    h.answers.append(("r14", "answer of v1"))


def _two_rows(h: History) -> None:
    h.rows.append(h.rows[3])


def _two_answers(h: History) -> None:
    h.answers.append(("r4", "answer of v2"))


def _never_sent(h: History) -> None:
    h.sent.remove("r4")


def _failed_yet_answered(h: History) -> None:
    h.change("r4", error_type="InstanceDied", finish_reason="error")


def _answered_yet_told_of_an_error(h: History) -> None:
    h.unanswer("r4")
    h.failed.add("r4")


def _answered_yet_not_seen(h: History) -> None:
    h.unanswer("r4")


def _unroutable_version(h: History) -> None:
    h.change("r1", assigned_version="v2", served_version="v2", output="answer of v2")
    h.answer("r1", "answer of v2")


def _unknown_epoch(h: History) -> None:
    h.change("r13", route_epoch=5)


def _old_version_after_the_switch(h: History) -> None:
    """By its epoch all is well; only the clock tells that v1 had left when the request was admitted."""
    h.change("r5", admitted_mono_s=20.5)


def _epoch_from_the_future(h: History) -> None:
    h.change("r6", route_epoch=3, arm="stable")


def _arm_of_another_version(h: History) -> None:
    h.change("r5", arm="candidate")


def _arm_that_is_not_there(h: History) -> None:
    h.change("r2", arm="candidate")


def _routes_go_back(h: History) -> None:
    h.routes[3] = h.routes[3]._replace(committed_mono_s=9.0)


def _text_of_the_other_version(h: History) -> None:
    h.change("r5", output="answer of v2")
    h.answer("r5", "answer of v2")


def _text_mixed(h: History) -> None:
    h.change("r5", output=None)
    h.answer("r5", "answer of v1 and v2")


def _recorded_text_differs(h: History) -> None:
    h.change("r5", output="something else")


def _unlabelled_fallback(h: History) -> None:
    h.change("r4", served_version="v1", output="answer of v1")
    h.answer("r4", "answer of v1")


def _label_without_fallback(h: History) -> None:
    h.change("r4", fallback=True)


def _fallback_to_a_version_long_gone(h: History) -> None:
    h.change("r9", served_version="v1", fallback=True, output="answer of v1")
    h.answer("r9", "answer of v1")


def _no_version_answered(h: History) -> None:
    h.change("r4", served_version=None)


def _row_without_an_end(h: History) -> None:
    h.change("r11", error_type=None)


def _row_with_two_ends(h: History) -> None:
    h.change("r11", finish_reason="stop")


def _client_that_hears_nothing(h: History) -> None:
    h.failed.remove("r11")


def _client_that_hears_two_things(h: History) -> None:
    h.failed.add("r13")


def _refused_yet_admitted(h: History) -> None:
    row = a_row("r12", 112.0, 4, "stable", "v2")
    h.rows.append(row._replace(operation_id="op-2", output_tokens=3))
    h.answers.append(("r12", "answer of v2"))
    h.streams["r12"] = chunks_of("answer of v2")


def _lost_though_another_was_refused(h: History) -> None:
    h.refused.remove("r12")
    h.failed.add("r12")


def _chunk_missing(h: History) -> None:
    del h.streams["r4"][1]


def _chunk_twice(h: History) -> None:
    h.streams["r4"].insert(1, h.streams["r4"][0])


def _chunks_swapped(h: History) -> None:
    h.streams["r4"][:2] = reversed(h.streams["r4"][:2])


def _chunk_of_another_answer(h: History) -> None:
    h.streams["r4"][1] = h.streams["r4"][1]._replace(text="by ")


def _token_left_out_of_the_count(h: History) -> None:
    h.streams["r4"][1] = h.streams["r4"][1]._replace(token_ids=(7, 8))


def _stream_that_never_ends(h: History) -> None:
    h.streams["r4"][-1] = h.streams["r4"][-1]._replace(finish_reason=None)


def _stream_that_ends_twice(h: History) -> None:
    h.streams["r4"][0] = h.streams["r4"][0]._replace(finish_reason=FinishReason.STOP)


def _broken_stream_that_went_on(h: History) -> None:
    """The row says one token; the client got two: the second was another instance's."""
    h.streams["r11"] = chunks_of("answer of v2")[:2]


def _admitted_after_the_drain_began(h: History) -> None:
    """The routes agree with the row; only the journal tells that the operation was over."""
    h.change("r8", operation_id="op")


def _admitted_after_the_rollback_was_committed(h: History) -> None:
    h.moves[2:] = [a_move(3, 19.995, "evaluating", "rolling back")]
    h.change("r8", operation_id="op")


def _copy_that_was_shown(h: History) -> None:
    h.answers.append(("r10-shadow", "answer of v1"))
    h.sent.add("r10-shadow")


def _copy_streamed_to_the_user(h: History) -> None:
    h.streams["r10-shadow"] = chunks_of("answer of v1")


def _copy_of_nothing(h: History) -> None:
    h.change("r10-shadow", pair_id="r99")


def _copy_without_its_pair(h: History) -> None:
    h.change("r10-shadow", pair_id=None)


def _two_copies(h: History) -> None:
    h.rows.append(next(row for row in h.rows if row.pair_id)._replace(request_id="r10-shadow-again"))


def _user_served_by_the_shadow(h: History) -> None:
    h.change("r10", assigned_version="v1", served_version="v1", output="answer of v1")
    h.answer("r10", "answer of v1")


def _copy_served_by_the_stable_version(h: History) -> None:
    h.change("r10-shadow", served_version="v2", output="answer of v2", fallback=True)


def _copy_with_the_users_text(h: History) -> None:
    h.change("r10-shadow", output="answer of v2")


def _retry_that_is_not_labelled(h: History) -> None:
    """The same version answered after it was started again: no column differs, only who was asked tells."""
    h.attempts = {row.request_id: [row.served_version or ""] for row in h.rows}
    h.attempts["r5"] = ["v1", "v1"]


def _label_of_a_retry_that_never_was(h: History) -> None:
    h.attempts = {row.request_id: [row.served_version or ""] for row in h.rows}
    h.change("r4", fallback=True, switch_path="restart")


def _served_by_somebody_who_was_not_asked(h: History) -> None:
    h.attempts = {row.request_id: [row.served_version or ""] for row in h.rows}
    h.attempts["r5"] = ["v2"]


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (_lost, {K.LOST: 1}),
        (_never_recorded_but_answered, {K.LOST: 1}),
        (_lost_though_another_was_refused, {K.LOST: 1}),
        (_two_rows, {K.DUPLICATED: 1}),
        (_two_answers, {K.DUPLICATED: 1}),
        (_never_sent, {K.NEVER_SENT: 1}),
        (_failed_yet_answered, {K.ANSWER_DISAGREES: 1}),
        (_answered_yet_told_of_an_error, {K.ANSWER_DISAGREES: 1}),
        (_answered_yet_not_seen, {K.ANSWER_DISAGREES: 1, K.ENDS: 1}),
        (_no_version_answered, {K.ANSWER_DISAGREES: 1}),
        (_recorded_text_differs, {K.ANSWER_DISAGREES: 1}),
        (_unroutable_version, {K.UNROUTABLE: 1, K.WRONG_ARM: 1}),
        (_unknown_epoch, {K.UNROUTABLE: 1}),
        (_old_version_after_the_switch, {K.WRONG_TIME: 1, K.UNROUTABLE: 1, K.BACKWARDS: 1}),
        (_epoch_from_the_future, {K.WRONG_TIME: 1}),
        (_arm_of_another_version, {K.WRONG_ARM: 1}),
        (_arm_that_is_not_there, {K.WRONG_ARM: 1}),
        (_text_of_the_other_version, {K.WRONG_TEXT: 1}),
        (_text_mixed, {K.WRONG_TEXT: 1}),
        (_unlabelled_fallback, {K.MISLABELLED: 1}),
        (_label_without_fallback, {K.MISLABELLED: 1}),
        (_fallback_to_a_version_long_gone, {K.UNROUTABLE: 1}),
        (_row_without_an_end, {K.ENDS: 1}),
        (_row_with_two_ends, {K.ENDS: 1}),
        (_client_that_hears_nothing, {K.ENDS: 1}),
        (_client_that_hears_two_things, {K.ENDS: 1}),
        (_refused_yet_admitted, {K.REFUSED_YET_ADMITTED: 1, K.ENDS: 1}),
        (_chunk_missing, {K.BROKEN_SEQUENCE: 1}),
        (_chunk_twice, {K.BROKEN_SEQUENCE: 1}),
        (_chunks_swapped, {K.BROKEN_SEQUENCE: 1}),
        (_chunk_of_another_answer, {K.BROKEN_SEQUENCE: 1}),
        (_token_left_out_of_the_count, {K.BROKEN_SEQUENCE: 1}),
        (_stream_that_never_ends, {K.BROKEN_SEQUENCE: 1}),
        (_stream_that_ends_twice, {K.BROKEN_SEQUENCE: 1}),
        (_broken_stream_that_went_on, {K.BROKEN_SEQUENCE: 1}),
        (_admitted_after_the_drain_began, {K.LET_GO: 1}),
        (_admitted_after_the_rollback_was_committed, {K.LET_GO: 1}),
        (_copy_that_was_shown, {K.COPY_SHOWN: 1}),
        (_copy_streamed_to_the_user, {K.COPY_SHOWN: 1}),
        (_copy_of_nothing, {K.STRAY_COPY: 1}),
        (_copy_without_its_pair, {K.STRAY_COPY: 1}),
        (_two_copies, {K.STRAY_COPY: 1}),
        (_user_served_by_the_shadow, {K.UNROUTABLE: 1, K.WRONG_ARM: 1}),
        (_copy_served_by_the_stable_version, {K.UNROUTABLE: 1, K.STRAY_COPY: 1}),
        (_copy_with_the_users_text, {K.WRONG_TEXT: 1}),
        (_retry_that_is_not_labelled, {K.MISLABELLED: 1}),
        (_label_of_a_retry_that_never_was, {K.MISLABELLED: 1}),
        (_served_by_somebody_who_was_not_asked, {K.MISLABELLED: 1}),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_planted_violation_is_caught_as_what_it_is(
    history: History, plant: Callable[[History], None], expected: dict[ViolationKind, int]
) -> None:
    plant(history)
    for as_frames in (False, True):
        report = history.check(as_frames=as_frames)
        assert {kind: report.count(kind) for kind in K if report.count(kind)} == {
            k: n for k, n in expected.items() if n
        }, str(report)
        with pytest.raises(HistoryError, match=str(next(iter(expected)))):
            report.raise_for_violations()


def test_snapshots_that_go_back_in_time_are_caught(history: History) -> None:
    _routes_go_back(history)
    assert history.check().count(K.BACKWARDS) == 1


def test_a_fallback_to_a_version_that_took_over_meanwhile_is_legal(history: History) -> None:
    # admitted at 19.5 to the stable v1, which left at 20: the retry was served by v2 and says so
    history.change(
        "r5", admitted_mono_s=19.5, served_version="v2", fallback=True, output="answer of v2", queue_s=0.0, total_s=2.0
    )
    history.answer("r5", "answer of v2")
    report = history.check()
    assert report.violations == ()
    assert report.fallbacks == 1


@pytest.mark.parametrize(("share", "legal"), [(1.0, True), (0.5, False)])
def test_a_fallback_is_answered_a_moment_before_the_way_back_is_in_force(
    history: History, share: float, legal: bool
) -> None:
    """The death of v2 is what both follow from; where v2 stays, v1 had no reason to answer."""
    history.routes.append(a_route(5, 200.0, "stable", "v1", share))
    if share < 1.0:
        history.routes.append(a_route(5, 200.0, "candidate", "v2", 1.0 - share))
    row = a_row("r20", 198.0, 4, "stable", "v2")
    history.rows.append(row._replace(served_version="v1", fallback=True, output="answer of v1"))
    history.sent.add("r20")
    history.answers.append(("r20", "answer of v1"))
    assert history.check().count(K.UNROUTABLE) == (0 if legal else 1)


def test_pinned_requests_are_bound_by_their_label_alone(history: History) -> None:
    history.change("r9", arm="pinned", assigned_version="v1", served_version="v1", output="answer of v1")
    history.answer("r9", "answer of v1")
    report = history.check()
    assert (report.violations, report.pinned) == ((), 1)
    history.change("r9", served_version="v2", output=None)
    history.answer("r9", "answer of v2")
    assert history.check().count(K.MISLABELLED) == 1


def test_models_do_not_mix(history: History) -> None:
    history.rows[0] = history.rows[0]._replace(model_id="other")
    assert history.check().count(K.UNROUTABLE) == 1


def test_prompts_may_be_given_where_none_are_recorded(history: History) -> None:
    rows = [row._replace(prompt=None, output=None) for row in history.rows]
    truth = {("v1", "p"): "right", ("v2", "p"): "answer of v2"}
    report = check_history(
        rows, history.routes, sent=history.sent, answered=dict(history.answers), truth=truth, prompts={"r1": "p"}
    )
    assert (report.texts_checked, report.count(K.WRONG_TEXT)) == (1, 1)
    assert "'p' → 'answer of v1', which no version answers; v1 answers 'right'" in str(report)


def test_an_empty_history_says_how_little_it_saw() -> None:
    report = check_history([], [], sent=["r1"], answered={})
    assert (report.sent, report.recorded, report.count(K.LOST)) == (1, 0, 1)


def test_rows_of_two_processes_and_missing_columns_are_refused(history: History) -> None:
    twice = [*history.routes, history.routes[0]._replace(committed_mono_s=3.0)]
    with pytest.raises(InvalidInput, match="rows of one process"):
        check_history(history.rows, twice, sent=history.sent, answered={})
    frame = pd.DataFrame(history.rows).drop(columns=["route_epoch"])
    with pytest.raises(InvalidInput, match="missing: route_epoch"):
        check_history(frame, history.routes, sent=history.sent, answered={})


def test_a_long_report_is_cut(history: History) -> None:
    history.sent |= {f"x{i}" for i in range(30)}
    history.failed |= {f"x{i}" for i in range(30)}
    told = str(history.check())
    assert "30 lost" in told
    assert "… and 20 more" in told
