"""Ten million requests analysed: abswitch, tea-tasting (through Ibis) and pandas + SciPy on one file, in one run.

Each way reads the table `requests` of a store with ten million rows of 100,000 users and compares the two arms of one
operation, in a process of its own (for its peak memory), on two threads. A way is asked several times; the first time
(after its imports, with cold caches and everything still to be compiled) is told apart from the median of the others.

- six    mean latency, mean first-token time, mean output tokens; latency adjusted by the prompt's length (CUPED);
         error rate; output tokens per second (ratio, delta method)
- panel  the six, and: the ratio and the mean clustered by user, p50 and p95 of latency with intervals (order
         statistics, the latter clustered by user), and the sample-ratio check. The others have no such panel.

`clustered by user` analyses 4,096 groups of users, see `abswitch.store.panel`.

tea-tasting takes every row for every metric, failed requests too (it would need a second pass to leave them out of the
latencies alone), so its p-values are a little different; those of the other two are the same.

tea-tasting and Ibis are fetched with pip into .cache/teatasting, apart from the project's own environment, when they
are not there; `--without tea-tasting` leaves them out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

CACHE = Path(__file__).parents[1] / ".cache"
PEERS = CACHE / "teatasting"
PEER = "tea-tasting==1.14.0"
PACKAGES = (PEER, "ibis-framework", "sqlglot", "toolz", "atpublic", "parsy", "narwhals", "pyarrow-hotfix")
GOALS = {"six_to_tea_tasting": 1.0, "panel_s": 1.5, "peak_mb": 1000}
ROWS = 10_000_000
USERS = 100_000
THREADS = 2
OPERATION = "op"

_FILL = """
INSERT INTO requests
SELECT 'r' || i, 'bot', 'op', 0, 1, arm, version, version, 'user-' || u, FALSE, 1.7e9 + i * 1e-3, i * 1e-3, 1e-5,
  0.02 * exp(0.3 * z) + (u % 100) * 1e-4, 0.3 * exp(0.4 * z) + (u % 100) * 1e-3 + prompt_tokens * 1e-4, prompt_tokens,
  20 + (60 * draw)::INT, CASE WHEN NOT failed THEN 'stop' END, CASE WHEN failed THEN 'InstanceDied' END,
  NULL, NULL, NULL, NULL, NULL, 'resident', 'load', 0.5
FROM (
  SELECT *, CASE WHEN u % 2 = 0 THEN 'stable' ELSE 'candidate' END AS arm, CASE WHEN u % 2 = 0 THEN 'v1' ELSE 'v2' END
    AS version
  FROM (
    SELECT i, (hash(i) % $users)::INT AS u, sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random()) AS z,
      10 + (90 * random())::INT AS prompt_tokens, random() < 0.01 AS failed, random() AS draw
    FROM range($rows) t(i)
  )
)
"""


def store(rows: int) -> Path:
    """The store, made once."""
    from abswitch.domain import RouteRecord
    from abswitch.store.recorder import Recorder

    path = CACHE / f"analysis-{rows}.duckdb"
    if path.exists():
        return path
    print(f"making {rows:,} rows …", flush=True)
    fresh = path.with_suffix(".new")
    with Recorder(fresh, publish_interval_s=None) as recorder:
        for arm, version in (("stable", "v1"), ("candidate", "v2")):
            recorder.route(RouteRecord("bot", 1, OPERATION, 0, arm, version, 0.5, 1.0, 1.0))
        sql = _FILL.replace("$users", str(USERS)).replace("$rows", str(rows))
        recorder.execute((sql, ())).result()
        recorder.execute(
            (
                "INSERT INTO assignments SELECT operation_id, model_id, unit_id, min(arm), min(assigned_version), 0.5, "
                "0, 1, min(request_id), min(admitted_at_s) FROM requests GROUP BY operation_id, model_id, unit_id",
                (),
            )
        ).result()
    fresh.rename(path)
    return path


# --- the ways: each returns a function to be timed, which returns what it found ---------------------------------------


def abswitch_six(path: Path) -> Callable[[], dict[str, float]]:
    """The six metrics by this project."""
    ask = _opened(path)
    return lambda: _six(ask())


def abswitch_panel(path: Path) -> Callable[[], dict[str, float]]:
    """The six and the rest."""
    ask = _opened(path)
    return lambda: _panel(ask())


def _opened(path: Path) -> Callable[[], Any]:
    from abswitch.store.panel import Panel
    from abswitch.store.recorder import Recorder

    for module in ("adjustment", "means", "proportions", "quantiles", "ratios", "srm", "summaries"):
        import_module(f"abswitch.stats.{module}")
    recorder = Recorder(path, publish_interval_s=None)
    recorder.execute((f"SET threads = {THREADS}", ())).result()
    return lambda: Panel.of(recorder, OPERATION)


def _six(panel: Any) -> dict[str, float]:
    from abswitch.stats.adjustment import CovariateSummary, cuped_test
    from abswitch.stats.means import welch_t_test
    from abswitch.stats.proportions import two_proportion_z_test
    from abswitch.stats.ratios import ratio_delta_test
    from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary

    speed, adjusted = ("output_tokens", "latency_s"), ("latency_s", "prompt_tokens")
    found = panel.moments(["latency_s", "first_token_s", "output_tokens"], pairs=[speed, adjusted])
    arms = [found[arm] for arm in ("stable", "candidate")]
    out = {}
    for name in ("latency_s", "first_token_s", "output_tokens"):
        means = [MeanSummary.from_moments(v[name].n, v[name].mean, v[name].var) for v, _ in arms]
        out[name] = welch_t_test(*means).p_value
    out["cuped"] = cuped_test(*(CovariateSummary.from_moments(*pairs[adjusted]) for _, pairs in arms)).p_value
    counts = [panel.counts[arm] for arm in ("stable", "candidate")]
    out["error"] = two_proportion_z_test(*(RateSummary(c.requests, c.errored) for c in counts)).p_value
    out["ratio"] = ratio_delta_test(*(RatioSummary.from_moments(*pairs[speed]) for _, pairs in arms)).p_value
    return {name: float(p) for name, p in out.items() if p is not None}


def _panel(panel: Any) -> dict[str, float]:
    from abswitch.stats.quantiles import clustered_quantile_ranks, quantile_ranks, quantile_test
    from abswitch.stats.ratios import clustered_mean_test
    from abswitch.stats.srm import sample_ratio_mismatch
    from abswitch.stats.summaries import RatioSummary
    from abswitch.store.panel import Edge

    out = _six(panel)
    n = {arm: panel.counts[arm].answered for arm in ("stable", "candidate")}
    plain = {arm: quantile_ranks(n[arm], 0.5) for arm in n}
    p95_rank = {arm: -(-n[arm] * 95 // 100) for arm in n}
    at = panel.values_at("latency_s", {arm: [*plain[arm].needed, p95_rank[arm]] for arm in n})
    edges = [Edge("latency_s", {arm: at[arm][k] for arm in n}) for k in (3, 1)]
    speed, mean = ("output_tokens", "latency_s"), ("latency_s", "count")
    grouped = panel.grouped([speed, mean], edges)
    for name, pair in (("clustered_ratio", speed), ("clustered_mean", mean)):
        arms = [RatioSummary.from_moments(*grouped[arm][0][pair]) for arm in ("stable", "candidate")]
        out[name] = float(clustered_mean_test(*arms).p_value or 0.0)
    ranks = {}
    for arm in n:
        below, median = (RatioSummary.from_moments(*moments) for moments in grouped[arm][1])
        ranks[arm] = clustered_quantile_ranks(below, median, 0.95)
    ends = panel.values_at("latency_s", {arm: ranks[arm].needed for arm in n})
    intervals = [ranks[arm].interval(*ends[arm]) for arm in n]
    out["p95"] = float(quantile_test(*intervals).p_value or 0.0)
    medians = [plain[arm].interval(*at[arm][:3]) for arm in ("stable", "candidate")]
    out["p50"] = float(quantile_test(*medians).p_value or 0.0)
    units = dict(
        panel.recorder.rows(
            "SELECT arm, count(DISTINCT unit_id) FROM assignments WHERE operation_id = ? GROUP BY arm", (OPERATION,)
        )
    )
    out["srm"] = sample_ratio_mismatch(units["stable"], units["candidate"], expected_share=0.5).p_value
    return out


def tea_tasting_six(path: Path) -> Callable[[], dict[str, float]]:
    """The same six by tea-tasting."""
    import ibis
    import tea_tasting as tt

    connection = ibis.duckdb.connect(str(path), read_only=True)
    connection.raw_sql(f"SET threads = {THREADS}")
    table = connection.table("requests").mutate(error=ibis._.error_type.notnull().cast("int8"))
    experiment = tt.Experiment(
        latency_s=tt.Mean("total_s"),
        first_token_s=tt.Mean("first_token_s"),
        output_tokens=tt.Mean("output_tokens"),
        cuped=tt.Mean("total_s", "prompt_tokens"),
        error=tt.Mean("error"),
        ratio=tt.RatioOfMeans("output_tokens", "total_s"),
        variant="arm",
    )
    return lambda: {n: float(r.pvalue) for n, r in experiment.analyze(table, control="stable").items()}


def pandas_six(path: Path) -> Callable[[], dict[str, float]]:
    """The same six as a notebook would: the columns as a data frame, then SciPy."""
    import duckdb
    import numpy as np
    from scipy import stats

    connection = duckdb.connect(str(path), read_only=True, config={"threads": THREADS})

    def ask() -> dict[str, float]:
        frame = connection.execute(
            "SELECT arm = 'candidate' AS candidate, total_s, first_token_s, output_tokens, prompt_tokens, "
            "error_type IS NOT NULL AS error FROM requests"
        ).df()
        ok = frame[~frame.error]
        a, b = ok[~ok.candidate], ok[ok.candidate]
        names = {"latency_s": "total_s", "first_token_s": "first_token_s", "output_tokens": "output_tokens"}
        out = {n: float(stats.ttest_ind(b[c], a[c], equal_var=False).pvalue) for n, c in names.items()}
        theta = np.cov(ok.total_s, ok.prompt_tokens)[0, 1] / ok.prompt_tokens.var()
        adjusted = [arm.total_s - theta * arm.prompt_tokens for arm in (a, b)]
        out["cuped"] = float(stats.ttest_ind(adjusted[1], adjusted[0], equal_var=False).pvalue)
        table = frame.groupby("candidate").error.agg(["sum", "count"]).to_numpy()
        rate = table[:, 0].sum() / table[:, 1].sum()
        z = np.diff(table[:, 0] / table[:, 1])[0] / np.sqrt(rate * (1 - rate) * (1 / table[:, 1]).sum())
        out["error"] = float(2 * stats.norm.sf(abs(z)))
        ratios = [arm.output_tokens.sum() / arm.total_s.sum() for arm in (a, b)]
        errors = [
            ((x.output_tokens - r * x.total_s) / x.total_s.mean()).var() / len(x)
            for x, r in zip((a, b), ratios, strict=True)
        ]
        out["ratio"] = float(2 * stats.norm.sf(abs(ratios[1] - ratios[0]) / np.sqrt(sum(errors))))
        return out

    return ask


WAYS: dict[str, Callable[[Path], Callable[[], dict[str, float]]]] = {
    "abswitch six": abswitch_six,
    "abswitch panel": abswitch_panel,
    "tea-tasting six": tea_tasting_six,
    "pandas six": pandas_six,
}


def one(way: str, path: Path, repeats: int) -> dict[str, Any]:
    """Time one way, in this process."""
    ask = WAYS[way](path)
    times_s, cpu_s, found = [], [], {}
    for _ in range(repeats + 1):
        start, start_cpu = time.perf_counter(), time.process_time()
        found = ask()
        times_s.append(time.perf_counter() - start)
        cpu_s.append(time.process_time() - start_cpu)
    return {
        "first_s": times_s[0],
        "times_s": times_s[1:],
        "cpu_s": cpu_s[1:],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "found": found,
    }


def apart(way: str, path: Path, repeats: int) -> dict[str, Any]:
    """Time one way, in a process of its own."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(PEERS)])}
    command = [sys.executable, __file__, "--one", way, "--store", str(path), "--repeats", str(repeats)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{way} failed:\n{ended.stderr}")
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


def fetch_peers() -> None:
    """tea-tasting and what it needs beyond what is installed here."""
    if not (PEERS / "tea_tasting").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PEERS), *PACKAGES]
        subprocess.run(pip, check=True)


def main() -> None:
    """Run and print the line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=3, help="each round asks every way in a fresh process")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], choices=["tea-tasting", "pandas"])
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.store, options.repeats)))
        return
    ways = [way for way in WAYS if way.split()[0] not in options.without]
    if "tea-tasting" not in options.without:
        fetch_peers()
    path = store(options.rows)
    rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for at in range(options.rounds):
        for way in ways[at % len(ways) :] + ways[: at % len(ways)]:
            rounds[way].append(apart(way, path, options.repeats))
    figures = report(rounds)
    met = all(figures[name] <= bound for name, bound in GOALS.items() if name in figures)
    p_values = {way: many[0]["found"] for way, many in rounds.items()}
    line = {"benchmark": "analysis", "rows": options.rows, "figures": figures, "goals": GOALS, "met": met}
    print(json.dumps(line | {"p_values": p_values}))


def report(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """A table, and the figures."""
    median = {way: statistics.median(t for r in many for t in r["times_s"]) for way, many in rounds.items()}
    first = {way: statistics.median(r["first_s"] for r in many) for way, many in rounds.items()}
    peak = {way: max(r["peak_mb"] for r in many) for way, many in rounds.items()}
    best = {way: min(t for r in many for t in r["times_s"]) for way, many in rounds.items()}
    cpu = {way: statistics.median(t for r in many for t in r["cpu_s"]) for way, many in rounds.items()}
    print(f"\n{'way':<18}{'seconds (median)':>18}{'best':>8}{'CPU s':>13}{'the first time':>16}{'peak memory MB':>16}")
    for way in rounds:
        print(f"{way:<18}{median[way]:>18.3f}{best[way]:>8.3f}{cpu[way]:>13.3f}{first[way]:>16.3f}{peak[way]:>16.0f}")
    print("\np-values " + "".join(f"{way:>18}" for way in rounds))
    for metric in rounds["abswitch panel"][0]["found"]:
        cells = [many[0]["found"].get(metric) for many in rounds.values()]
        print(f"{metric:<16}" + "".join(f"{'' if p is None else format(p, '.4g'):>18}" for p in cells))
    figures = {f"{way.replace(' ', '_').replace('-', '_')}_s": round(t, 4) for way, t in median.items()}
    figures |= {f"{way.replace(' ', '_').replace('-', '_')}_first_s": round(t, 4) for way, t in first.items()}
    figures |= {f"{way.replace(' ', '_').replace('-', '_')}_best_s": round(t, 4) for way, t in best.items()}
    figures |= {f"{way.replace(' ', '_').replace('-', '_')}_cpu_s": round(t, 4) for way, t in cpu.items()}
    figures |= {"panel_s": round(median["abswitch panel"], 4), "peak_mb": round(peak["abswitch panel"])}
    for peer in ("tea-tasting six", "pandas six"):
        if peer in median:
            name = peer.split()[0].replace("-", "_")
            figures[f"six_to_{name}"] = round(median["abswitch six"] / median[peer], 3)
            figures[f"six_to_{name}_first"] = round(first["abswitch six"] / first[peer], 3)
            figures[f"peak_mb_{name}"] = round(peak[peer])
    return figures


if __name__ == "__main__":
    main()
