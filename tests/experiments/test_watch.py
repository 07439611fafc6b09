"""The regression watch: against the last good run, beyond chance and margin; and who is told."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from abswitch.experiments.runs import RunResult
from abswitch.experiments.spec_parts import WatchSpec
from abswitch.experiments.watch import regressions, send_alerts
from abswitch.stats import Mean, Metric, Rate

ACCURACY = Rate("exact_match", margin=0.05)
LATENCY = Mean("latency_s", direction="decrease", role="guardrail", margin=0.5)
EXTRA = Rate("truncated", direction="decrease", role="secondary")
METRICS: tuple[Metric, ...] = (ACCURACY, LATENCY, EXTRA)


def run(right: int, *, n: int = 1000, latency_s: float = 0.1, cut: int = 0) -> dict[str, Any]:
    """What a run with so many right answers of `n`, in either arm, hands on."""

    def summaries() -> dict[str, Any]:
        return {
            "exact_match": {"kind": "RateSummary", "n": n, "successes": right},
            "latency_s": {"kind": "MeanSummary", "n": n, "mean": latency_s, "m2": 0.0004 * (n - 1)},
            "truncated": {"kind": "RateSummary", "n": n, "successes": cut},
        }

    return {arm: {"version": f"{arm}-version", "summaries": summaries()} for arm in ("baseline", "candidate")}


def good(watched: Mapping[str, Any] | None) -> RunResult:
    return RunResult(
        run_id="20260101T000000Z",
        experiment="sums",
        exit_status=0,
        decision="ship",
        headline="",
        reasons=(),
        requests={},
        started_at_s=0.0,
        ended_at_s=1.0,
        watched=watched,
    )


def found(now: dict[str, Any], before: dict[str, Any] | None, **watch: Any) -> list[tuple[str, str]]:
    alerts = regressions(now, good(before), METRICS, WatchSpec(**watch))
    return [(alert.arm, alert.metric) for alert in alerts]


def test_worse_by_more_than_the_margin_is_told_in_a_sentence() -> None:
    (alert,) = regressions(run(800), good(run(930)), METRICS, WatchSpec())
    assert str(alert).startswith(
        "exact_match of the candidate (candidate-version) is 0.8, it was 0.93 in run 20260101T000000Z: "
        "worse by more than 0.05"
    )
    assert alert.low < alert.now - alert.before < alert.high < -0.05


@pytest.mark.parametrize(
    ("now", "before"),
    [
        (run(930), run(930)),
        (run(990), run(800)),  # better
        (run(900), run(930)),  # worse, within the margin
        (run(80, n=100), run(93, n=100)),  # worse, and perhaps by chance
        (run(930, latency_s=0.5), run(930)),  # slower, within the margin
        (run(930, cut=400), run(930)),  # only a secondary metric
    ],
)
def test_what_is_no_regression(now: dict[str, Any], before: dict[str, Any]) -> None:
    assert found(now, before) == []


def test_a_guardrail_is_watched_as_well() -> None:
    assert found(run(930, latency_s=0.9), run(930)) == [("candidate", "latency_s")]


def test_the_spec_says_which_metrics_and_arms_and_how_sure() -> None:
    assert found(run(930, cut=400), run(930), metrics=("truncated",)) == [("candidate", "truncated")]
    assert found(run(800), run(930), metrics=("latency_s",)) == []
    both = [("baseline", "exact_match"), ("candidate", "exact_match")]
    assert found(run(800), run(930), arms=("baseline", "candidate")) == both
    assert found(run(840), run(930), alpha=0.0001) == []
    assert found(run(840), run(930), alpha=0.05) == [("candidate", "exact_match")]


def test_metrics_that_either_run_lacks_say_nothing() -> None:
    without = run(800)
    for arm in without.values():
        del arm["summaries"]["exact_match"]
    assert found(without, run(930)) == []
    assert found(run(800), without) == []
    assert found(run(800), None) == []
    other = run(800)
    other["candidate"]["summaries"]["exact_match"] = {"kind": "MeanSummary", "n": 9, "mean": 0.1, "m2": 0.1}
    assert found(other, run(930)) == [], "another kind of metric by the same name"


def test_values_that_json_cannot_hold_come_back() -> None:
    before = run(930)
    before["candidate"]["summaries"]["latency_s"] |= {"n": 0, "mean": None, "m2": None}
    assert found(run(930), before) == []


def test_a_file_of_another_version_of_abswitch_is_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    before = run(930)
    before["candidate"]["summaries"]["exact_match"]["hits"] = 3
    assert found(run(800), before) == []
    assert "exact_match is not compared with run 20260101T000000Z" in caplog.text


# --- who is told ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server that keeps what is posted to it; /broken fails."""
    bodies: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path == "/broken" else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    thread.join()
    server.server_close()


WATCH = WatchSpec(webhook_env="ALERTS_TO")


def test_alerts_are_logged_and_posted(
    hook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    address, bodies = hook
    monkeypatch.setenv("ALERTS_TO", address)
    assert send_alerts("sums", "r1", ["slower", "wronger"], WATCH)
    (body,) = bodies
    assert body["alerts"] == ["slower", "wronger"]
    assert (body["experiment"], body["run_id"]) == ("sums", "r1")
    assert body["text"] == "abswitch: sums is worse than its last good run\n• slower\n• wronger"
    assert "regression in sums, run r1: slower" in caplog.text


def test_without_alerts_or_webhook_nothing_is_posted(
    hook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, bodies = hook
    monkeypatch.setenv("ALERTS_TO", address)
    assert send_alerts("sums", "r1", [], WATCH)
    assert send_alerts("sums", "r1", ["slower"], WatchSpec())
    assert bodies == []


@pytest.mark.parametrize("address", [None, "", "file:///etc/passwd", "http://127.0.0.1:1", "broken"])
def test_a_webhook_that_cannot_be_reached_costs_nothing_but_a_line(
    address: str | None,
    hook: tuple[str, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if address is not None:
        monkeypatch.setenv("ALERTS_TO", f"{hook[0]}/broken" if address == "broken" else address)
    assert not send_alerts("sums", "r1", ["slower"], WATCH)
    assert "the alerts of sums were not posted" in caplog.text
    assert "passwd" not in caplog.text, "addresses may hold secrets"
