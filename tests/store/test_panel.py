"""The fast sums are the careful ones, and groups of units vary as units do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, replace

import numpy as np
import pytest

from abswitch.errors import InvalidInput
from abswitch.stats import AnalysisPlan, Mean, Metric, Quantile, Rate, Ratio, Where
from abswitch.stats.ratios import clustered_mean_test
from abswitch.stats.summaries import RatioSummary
from abswitch.store import measured, panel_evidence
from abswitch.store.evidence import collect_evidence
from abswitch.store.measured import measure
from abswitch.store.moments import arm_counts
from abswitch.store.panel import Counts, Edge, Panel
from abswitch.store.panel_evidence import panel_summaries
from abswitch.store.recorder import Recorder
from tests.store.rows import a_request, routes_of

PAIRS = (("output_tokens", "latency_s"), ("latency_s", "prompt_tokens"), ("first_token_s", "prompt_tokens"))


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    chance = np.random.default_rng(5)
    with Recorder(":memory:") as made:
        for route in routes_of("op"):
            made.route(route)
        for i in range(20_000):
            unit = int(chance.integers(4000))
            slow = 0.2 + 0.3 * (unit % 7)
            error = "InstanceDied" if chance.random() < 0.02 else "Cancelled" if chance.random() < 0.01 else None
            made.request(
                a_request(
                    f"r{i}",
                    arm="candidate" if unit % 3 else "stable",
                    unit_id=f"user-{unit}",
                    total_s=1e4 + slow * float(chance.lognormal()),  # far from 0: squares would cancel
                    first_token_s=None if chance.random() < 0.1 else float(chance.random()),
                    prompt_tokens=None if chance.random() < 0.1 else int(chance.integers(5, 90)),
                    output_tokens=int(chance.integers(1, 99)),
                    error_type=error,
                    fallback=bool(chance.random() < 0.01),
                )
            )
        made.request(a_request("pinned", arm="pinned", total_s=9e9))
        made.request(a_request("later", route_epoch=2, total_s=9e9))
        made.flush()
        yield made


def test_sums_are_those_of_the_careful_way(recorder: Recorder) -> None:
    names = ["latency_s", "first_token_s", "generation_s", "output_tokens", "prompt_tokens"]
    metrics: list[Metric] = [*(Mean(name) for name in names), *(Ratio(*pair) for pair in PAIRS)]
    metrics.append(Mean("output_tokens", covariate="prompt_tokens", name="adjusted"))
    careful = measure(recorder, "op", metrics, by_unit=False)
    fast = panel_summaries(recorder, "op", metrics, by_unit=False)
    for metric in metrics:
        for arm, want in (("stable", careful[metric.name].baseline), ("candidate", careful[metric.name].candidate)):
            got = fast[metric.name][arm]
            assert type(got) is type(want) and got.n == want.n  # type: ignore[union-attr]
            assert astuple(got) == pytest.approx(astuple(want), rel=1e-9, abs=1e-4), "sums of 20,000"


def test_what_the_panel_cannot_add_up_is_left_to_the_careful_way(recorder: Recorder) -> None:
    plain = Mean("latency_s")
    few: list[Metric] = [Mean("quality"), Rate("error"), Quantile("latency_s", 0.5)]
    few += [replace(plain, where=(Where(column="step", equals=0),)), replace(plain, unit="unit")]
    assert panel_summaries(recorder, "op", few, by_unit=False) == {}
    assert panel_summaries(recorder, "op", [plain], by_unit=True, units=1000) == {}, "too few units for groups"


def test_many_requests_take_the_fast_way_and_find_the_same(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics: list[Metric] = [
        Mean("latency_s"),
        Ratio("output_tokens", "latency_s"),
        Rate("error"),
        Quantile("latency_s", 0.5),
    ]
    plan = AnalysisPlan(
        baseline="v1",
        candidate="v2",
        metrics=tuple(replace(one, role="secondary") if i else one for i, one in enumerate(metrics)),
        expected_share=0.5,
        planned_n=10,
    )
    careful = collect_evidence(recorder, "op", plan)
    assert careful.repeated_units
    monkeypatch.setattr(measured, "FAST_FROM", 1)
    monkeypatch.setattr(panel_evidence, "_GROUPED_FROM", 1)
    fast = collect_evidence(recorder, "op", plan)
    for metric in plan.metrics:
        a, b = (
            metric.compare(one.baseline.summaries[metric.name], one.candidate.summaries[metric.name], alpha=0.05)
            for one in (careful, fast)
        )
        assert b.estimate == pytest.approx(a.estimate, rel=1e-9)
        assert b.standard_error == pytest.approx(a.standard_error, rel=0.1)


def test_counts_are_those_of_the_comparison(recorder: Recorder) -> None:
    careful, fast = arm_counts(recorder, "op"), Panel.of(recorder, "op").counts
    assert fast == {arm: Counts(a.requests, a.errored, a.answered) for arm, a in careful.items()}


def test_groups_vary_as_units_do(recorder: Recorder) -> None:
    pair = ("output_tokens", "latency_s")
    careful = measure(recorder, "op", [Ratio(*pair)], by_unit=True)["output_tokens_per_latency_s"]
    exact = [arm for arm in (careful.baseline, careful.candidate) if isinstance(arm, RatioSummary)]
    grouped = Panel.of(recorder, "op").grouped([pair], groups=512)
    rough = [RatioSummary.from_moments(*grouped[arm][0][pair]) for arm in ("stable", "candidate")]
    a, b = clustered_mean_test(*exact), clustered_mean_test(*rough)
    assert a.estimate is not None and a.standard_error is not None
    assert b.estimate == pytest.approx(a.estimate, rel=1e-9), "the estimate is the very same"
    assert b.standard_error == pytest.approx(a.standard_error, rel=0.1)


def test_values_at_ranks_and_counts_below_them(recorder: Recorder) -> None:
    panel = Panel.of(recorder, "op")
    values = sorted(
        row[0]
        for row in recorder.rows(
            "SELECT total_s FROM requests WHERE arm = 'stable' AND error_type IS NULL AND NOT fallback "
            "AND route_epoch = 1"
        )
    )
    n = len(values)
    assert panel.values_at("latency_s", {"stable": [1, 500, n], "candidate": []}) == {
        "stable": [values[0], values[499], values[-1]],
        "candidate": [],
    }
    some = sorted(
        row[0]
        for row in recorder.rows(
            "SELECT first_token_s FROM requests WHERE arm = 'candidate' AND error_type IS NULL AND NOT fallback "
            "AND route_epoch = 1 AND first_token_s IS NOT NULL"
        )
    )
    assert panel.values_at("first_token_s", {"candidate": [7, len(some)]})["candidate"] == [some[6], some[-1]]
    edges = [Edge("latency_s", {"stable": values[at], "candidate": 0.0}) for at in (n // 2, n - 5)]
    below = panel.grouped(below=edges, groups=256)
    for found, at in zip(below["stable"][1], (n // 2, n - 5), strict=True):
        assert 240 < found.n <= 256, "groups that a unit fell into"
        assert found.mean_x * found.n == pytest.approx(at + 1) and found.mean_y * found.n == pytest.approx(n)
    assert below["candidate"][1][0].mean_x == 0.0


def test_unknown_names_and_groups_are_refused(recorder: Recorder) -> None:
    panel = Panel.of(recorder, "op")
    for ask in (
        lambda: panel.moments(["quality"]),
        lambda: panel.grouped([("latency_s", "nothing")]),
        lambda: panel.grouped([("latency_s", "count")], groups=1000),
        lambda: panel.values_at("latency_s", {"stable": [0]}),
        lambda: panel.values_at("latency_s", {"stable": [10**6]}),
        lambda: panel.values_at("latency_s", {"nobody": [1]}),
    ):
        with pytest.raises(InvalidInput):
            ask()


def test_nothing_is_nothing() -> None:
    with Recorder(":memory:") as empty:
        panel = Panel.of(empty, "op")
        assert panel.counts == {} and panel.moments(["latency_s"]) == {} and panel.grouped() == {}
        assert panel.values_at("latency_s", {"stable": []}) == {"stable": []}
