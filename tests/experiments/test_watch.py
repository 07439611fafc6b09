"""The regression watch: what counts as worse, as lost, as good; and alerts that reach a real HTTP server, or do not."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from abswitch.errors import InvalidInput
from abswitch.experiments import watch as watching
from abswitch.experiments.exits import ExitStatus
from abswitch.experiments.runs import RunFolder, RunResult, last_good, open_run, result_of
from abswitch.experiments.spec import spec_of
from abswitch.experiments.spec_parts import WatchSpec
from abswitch.experiments.watch import Lost, Regression, regressions, send_alerts, watched
from abswitch.stats import (
    ArmEvidence,
    CovariateSummary,
    Evidence,
    Mean,
    MeanSummary,
    Metric,
    MetricSummary,
    Paired,
    Quantile,
    QuantileSummary,
    Rate,
    RateSummary,
    Ratio,
    RatioCovariateSummary,
    RatioSummary,
)
from tests.experiments.test_conduct_designs import plain
from tests.serving.test_webhook import Receiver

RIGHT = Rate("exact_match", margin=0.05)
SLOW = Mean("latency_s", role="guardrail", margin=0.1)


def told_of(baseline: Mapping[str, MetricSummary], candidate: Mapping[str, MetricSummary]) -> dict[str, Any]:
    """`watched` of a run with these summaries, through JSON as its file has it."""
    arms = [
        ArmEvidence(version=version, assigned=1000, analysed=1000, summaries=summaries)
        for version, summaries in (("v1", baseline), ("v2", candidate))
    ]
    evidence = Evidence(baseline=arms[0], candidate=arms[1], plan_digest=None)
    plain: dict[str, Any] = json.loads(json.dumps(watched(cast(Any, SimpleNamespace(evidence=evidence)))))
    return plain


def result_with(told: Mapping[str, Any] | None, run_id: str = "yesterday", status: int = 0) -> RunResult:
    return RunResult(
        run_id=run_id, experiment="known", exit_status=status, decision="ship", headline="", reasons=(),
        requests={}, started_at_s=0.0, ended_at_s=1.0, watched=told,
    )  # fmt: skip


def found(
    metric: Metric, before: MetricSummary, now: MetricSummary, watch: WatchSpec | None = None
) -> tuple[Regression | Lost, ...]:
    """What the watch says of the candidate's metric, the baseline being as it was."""
    good = result_with(told_of({metric.name: before}, {metric.name: before}))
    told = told_of({metric.name: before}, {metric.name: now})
    return regressions(told, good, (metric,), watch or WatchSpec())


# --- worse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "worse"),
    [(900, False), (1000, False), (870, False), (850, False), (700, True), (0, True)],
    ids=[
        "the same",
        "better",
        "worse within the margin",
        "worse, beyond the margin by chance",
        "far worse",
        "all gone",
    ],
)
def test_a_rate_is_worse_beyond_its_margin_and_beyond_chance(now: int, worse: bool) -> None:
    assert bool(found(RIGHT, RateSummary(1000, 900), RateSummary(1000, now))) is worse


def test_a_certain_loss_within_the_margin_is_accepted() -> None:
    before, now = RateSummary(100_000, 90_000), RateSummary(100_000, 87_000)
    assert found(Rate("exact_match"), before, now)
    assert not found(RIGHT, before, now)


def test_few_values_show_nothing() -> None:
    assert not found(RIGHT, RateSummary(10, 9), RateSummary(10, 6))


def test_what_should_fall_is_worse_when_it_rises() -> None:
    rng = np.random.default_rng(1)
    usual, slower = rng.exponential(1.0, 2000), rng.exponential(1.5, 2000)
    assert not found(SLOW, MeanSummary.of(slower), MeanSummary.of(usual))
    (one,) = found(SLOW, MeanSummary.of(usual), MeanSummary.of(slower))
    assert isinstance(one, Regression)
    assert one.now > one.before
    assert one.low > 0.1


def test_an_alert_says_all_that_one_has_to_know() -> None:
    (one,) = found(RIGHT, RateSummary(1000, 900), RateSummary(1000, 700))
    words = str(one)
    assert words.startswith(
        "exact_match of the candidate (v2) is 0.7, it was 0.9 in run yesterday: worse by more than 0.05"
    )
    assert "difference -0.2" in words


def test_without_a_margin_any_loss_beyond_chance_counts() -> None:
    metric = Rate("exact_match")
    (one,) = found(metric, RateSummary(10_000, 9_000), RateSummary(10_000, 8_800))
    assert ": worse (difference" in str(one)


def test_alpha_says_how_sure() -> None:
    before, now = RateSummary(1000, 900), RateSummary(1000, 805)
    assert found(RIGHT, before, now, WatchSpec(alpha=0.1))
    assert not found(RIGHT, before, now, WatchSpec(alpha=0.0001))


@pytest.mark.parametrize(
    ("watch", "found_of"),
    [
        (WatchSpec(), [("candidate", "exact_match")]),
        (WatchSpec(arms=("baseline", "candidate")), [("baseline", "exact_match"), ("candidate", "exact_match")]),
        (WatchSpec(metrics=("output_tokens",)), [("candidate", "output_tokens")]),
    ],
    ids=["no secondary ones unless named", "both arms", "those named"],
)
def test_the_arms_and_metrics_that_are_named_are_watched(watch: WatchSpec, found_of: list[tuple[str, str]]) -> None:
    tokens = Mean("output_tokens", role="secondary")
    good: dict[str, MetricSummary] = {
        "exact_match": RateSummary(1000, 900),
        "output_tokens": MeanSummary.of(np.arange(1000) % 7),
    }
    bad: dict[str, MetricSummary] = {
        "exact_match": RateSummary(1000, 600),
        "output_tokens": MeanSummary.of(np.arange(1000) % 3),
    }
    worse = regressions(told_of(bad, bad), result_with(told_of(good, good)), (RIGHT, tokens), watch)
    assert [(one.arm, one.metric) for one in worse] == found_of


def kinds_of_evidence() -> list[tuple[Metric, MetricSummary, MetricSummary]]:
    rng = np.random.default_rng(7)
    x, y, z = rng.exponential(1.0, 800), rng.exponential(2.0, 800), rng.normal(size=800)
    units = np.repeat(np.arange(200), 4)
    slow, ones = 3.0 * x, np.ones(800)
    return [
        (Mean("latency_s"), MeanSummary.of(x), MeanSummary.of(slow)),
        (Rate("exact_match"), RateSummary(800, 700), RateSummary(800, 500)),
        (Mean("latency_s"), RatioSummary.of(x, ones), RatioSummary.of(slow, ones)),
        (Ratio("output_tokens", "latency_s"), RatioSummary.of(y, x), RatioSummary.of(y, slow)),
        (Quantile("latency_s", 0.9), QuantileSummary.of(x, 0.9), QuantileSummary.of(slow, 0.9)),
        (
            Quantile("latency_s", 0.9),
            QuantileSummary.of(x, 0.9, units=units),
            QuantileSummary.of(slow, 0.9, units=units),
        ),
        (
            Mean("latency_s", covariate="prompt_tokens"),
            CovariateSummary.of(x + z, z),
            CovariateSummary.of(slow + z, z),
        ),
        (
            Mean("latency_s", covariate="prompt_tokens"),
            RatioCovariateSummary.of(x, ones, z),
            RatioCovariateSummary.of(slow, ones, z),
        ),
    ]


@pytest.mark.parametrize("case", range(8))
def test_every_kind_of_evidence_is_the_same_from_its_file(case: int) -> None:
    metric, before, now = kinds_of_evidence()[case]
    (one,) = found(metric, before, now)
    assert isinstance(one, Regression)
    directly = metric.compare(before, now, alpha=0.01)
    assert (one.before, one.now) == pytest.approx((directly.baseline.value, directly.candidate.value), rel=1e-12)
    assert (one.low, one.high) == pytest.approx((directly.low, directly.high), rel=1e-9)
    assert not found(metric, before, before)


# --- missing --------------------------------------------------------------------------------------------------------


def test_a_metric_that_lost_its_values_is_an_alert() -> None:
    good = result_with(told_of({}, {"exact_match": RateSummary(320, 300)}))
    for candidate in ({}, {"exact_match": RateSummary(0, 0)}):
        (one,) = regressions(told_of({}, candidate), good, (RIGHT,), WatchSpec())
        assert isinstance(one, Lost)
        assert str(one) == "exact_match of the candidate (v2) has no values; in run yesterday it was of 320"


@pytest.mark.parametrize(
    "before", [{}, {"exact_match": RateSummary(0, 0)}, {"other": RateSummary(9, 9)}], ids=["none", "empty", "another"]
)
def test_a_metric_that_is_new_is_not(before: dict[str, MetricSummary]) -> None:
    now = told_of({}, {"exact_match": RateSummary(1000, 1)})
    assert regressions(now, result_with(told_of({}, before)), (RIGHT,), WatchSpec()) == ()
    assert regressions(now, result_with(None), (RIGHT,), WatchSpec()) == (), "a run of before there was a watch"


def test_a_metric_that_became_another_one_is_logged_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    good = result_with(told_of({}, {"exact_match": MeanSummary.of([0.0, 1.0, 1.0])}))
    now = told_of({}, {"exact_match": RateSummary(1000, 1)})
    with caplog.at_level(logging.WARNING):
        assert regressions(now, good, (RIGHT,), WatchSpec()) == ()
    assert "exact_match of the candidate cannot be compared with run yesterday" in caplog.text


def test_a_damaged_file_of_the_good_run_does_not_end_the_new_one(caplog: pytest.LogCaptureFixture) -> None:
    now = told_of({}, {"exact_match": RateSummary(1000, 1)})
    broken = {"candidate": {"version": "v2", "summaries": {"exact_match": {"kind": "RateSummary", "n": 3}}}}
    with caplog.at_level(logging.WARNING):
        assert regressions(now, result_with(broken), (RIGHT,), WatchSpec()) == ()
    assert "cannot be compared" in caplog.text


def test_too_few_values_for_a_quantile_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    metric = Quantile("latency_s", 0.99)
    few = QuantileSummary.of(np.arange(20.0), 0.99)
    with caplog.at_level(logging.WARNING):
        assert not found(metric, few, few)
    assert "latency_s_p99 of the candidate cannot be compared" in caplog.text


# --- what a spec may ask for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"watch": {"metrics": ["speed"]}}, "watch.metrics: got 'speed'"),
        ({"watch": {"metrics": []}}, "watch.metrics"),
        ({"watch": {"arms": []}}, "watch.arms"),
        ({"watch": {"webhook_env": "https://secret.example.org"}}, "watch.webhook_env"),
        ({"watch": {"alpha": 0.7}}, "watch.alpha"),
        (
            {
                "design": {"kind": "paired"},
                "metrics": [{"kind": "paired", "column": "exact_match"}],
                "watch": {},
            },
            "pairs have none",
        ),
        (
            {
                "design": {"kind": "canary"},
                "metrics": [],
                "budget": {"requests": 100},
                "watch": {},
            },
            "a canary is judged by its own guardrails",
        ),
    ],
)
def test_a_watch_that_could_find_nothing_is_refused(more: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        spec_of(plain({"kind": "randomised"}) | more)


def test_pairs_are_left_out_where_something_else_is_watched() -> None:
    metrics = (RIGHT, Paired("latency_s", role="guardrail", margin=0.1))
    assert watching.watched_metrics(metrics, WatchSpec()) == [RIGHT]


# --- good -----------------------------------------------------------------------------------------------------------


def run_that_ended(tmp_path: Path, status: int | None, **cell: Any) -> RunFolder:
    spec = spec_of(plain({"kind": "randomised"}))
    run = open_run(spec, reports=tmp_path, project=tmp_path, cell=cell, fresh=True)
    if status is not None:
        run.finish(result_with(None, run.path.name, status))
    return run


def test_the_last_good_run_is_the_latest_older_one_that_succeeded(tmp_path: Path) -> None:
    good, better = run_that_ended(tmp_path, ExitStatus.SUCCESS), run_that_ended(tmp_path, ExitStatus.SUCCESS)
    for status in (ExitStatus.REGRESSED, ExitStatus.KEEP, ExitStatus.INVALID, ExitStatus.SHIP, None):
        run_that_ended(tmp_path, status)
    now = run_that_ended(tmp_path, None)
    run_that_ended(tmp_path, ExitStatus.SUCCESS)  # of tomorrow
    found = last_good(now, tmp_path)
    assert found is not None
    assert found.run_id == better.path.name
    before = last_good(better, tmp_path)
    assert before is not None
    assert before.run_id == good.path.name
    assert last_good(good, tmp_path) is None


def test_runs_of_a_matrix_are_compared_with_their_own_cell(tmp_path: Path) -> None:
    cold = run_that_ended(tmp_path, ExitStatus.SUCCESS, temperature=0.0)
    run_that_ended(tmp_path, ExitStatus.SUCCESS, temperature=1.0)
    run_that_ended(tmp_path, ExitStatus.SUCCESS)
    now = run_that_ended(tmp_path, None, temperature=0.0)
    found = last_good(now, tmp_path)
    assert found is not None
    assert found.run_id == cold.path.name


def test_a_run_by_its_id(tmp_path: Path) -> None:
    run = run_that_ended(tmp_path, ExitStatus.KEEP)
    found = result_of("known", tmp_path, run.path.name)
    assert found is not None
    assert found.exit_status == ExitStatus.KEEP
    for other in ("20200101T000000Z-nothing", f"../known/{run.path.name}", run_that_ended(tmp_path, None).path.name):
        assert result_of("known", tmp_path, other) is None


# --- telling --------------------------------------------------------------------------------------------------------

HOOK = WatchSpec(webhook_env="HOOK")


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver()
    monkeypatch.setenv("HOOK", made.url)
    monkeypatch.setattr(watching, "_PAUSE_S", 0.0)
    yield made
    made.close()


def test_alerts_reach_the_webhook(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    assert send_alerts("known", ["it is <b>worse</b>", "and slower"], HOOK, run_id="r1") is None
    ((headers, content),) = receiver.received
    assert headers["Content-Type"] == "application/json"
    assert json.loads(content) == {
        "text": "abswitch: known is worse than its last good run\n• it is <b>worse</b>\n• and slower",
        "experiment": "known",
        "run_id": "r1",
        "alerts": ["it is <b>worse</b>", "and slower"],
    }
    assert "known r1: and slower" in caplog.text


def test_nothing_is_posted_without_an_alert_or_an_address(receiver: Receiver) -> None:
    assert send_alerts("known", [], HOOK) is None
    assert send_alerts("known", ["worse"], WatchSpec()) is None
    assert receiver.received == []


def test_a_receiver_that_is_down_for_a_moment_gets_it_all_the_same(receiver: Receiver) -> None:
    receiver.codes = [503, 429]
    assert send_alerts("known", ["worse"], HOOK) is None
    assert len(receiver.received) == 3


@pytest.mark.parametrize(("codes", "asked"), [([404], 1), ([500] * 9, 4)])
def test_a_receiver_that_refuses_is_told(receiver: Receiver, codes: list[int], asked: int) -> None:
    receiver.codes = list(codes)
    assert send_alerts("known", ["worse"], HOOK) == f"HTTP {codes[0]}"
    assert len(receiver.received) == asked


def test_a_receiver_that_is_not_there(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.close()
    problem = send_alerts("known", ["worse"], HOOK)
    assert problem is not None
    assert "refused" in problem
    assert receiver.url not in caplog.text, "the address may be secret"


@pytest.mark.parametrize("value", [None, "", "chat.example.org/hook", "file:///etc/passwd", "http://[broken"])
def test_an_address_that_is_none(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("HOOK", raising=False)
    else:
        monkeypatch.setenv("HOOK", value)
    problem = send_alerts("known", ["worse"], HOOK)
    assert problem is not None
    if value != "http://[broken":
        assert problem == "the environment has no http address in HOOK"
