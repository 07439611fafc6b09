"""What recording costs: rows per second, time taken from the engine's loop, and what `kill -9` loses.

One run on one machine, each way in turn, on the same rows:

- abswitch  `Recorder.request`: a queue, one writer thread, DuckDB (with publication for other processes, as by default)
- sqlite    one INSERT and commit per request (WAL, synchronous=NORMAL: the fastest that survives a killed process); and
            `executemany` in batches of 1,000, which is what a writer thread could do
- mlflow    `MlflowClient.log_batch` of five metrics per request on its SQLite store

Figures:

- rows_per_s            rows committed per second while as many as fit are handed in
- on_loop_us            time one request takes on a running event loop, from the values to the row handed over, at 1,000
                        requests/s; median and 99th percentile
- lost_s, lost_rows     `kill -9` of a process that records 1,000 rows/s: how far back the missing rows go, and how many
                        they are (the worst of several kills)
- acknowledged_lost     rows missing that a `flush` had confirmed

The goals are set on `abswitch`; the others are there to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import signal
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

from abswitch.domain import RequestRecord
from abswitch.store.recorder import Recorder

GOALS = {"on_loop_us_median": 20.0, "lost_s": 0.5, "acknowledged_lost": 0}
RATE = 1000
_BATCHED = 100_000


def a_row(number: int) -> RequestRecord:
    """One request, made as the dispatcher makes it."""
    now_s = time.time()
    return RequestRecord(
        request_id=f"3f9c2a7be1d04c55-{number}",
        model_id="support-bot",
        operation_id="op-5f0c1a2b3c4d",
        step=1,
        route_epoch=7,
        arm="candidate" if number % 3 else "stable",
        assigned_version="v2" if number % 3 else "v1",
        served_version="v2" if number % 3 else "v1",
        unit_id=f"user-{number % 1000}",
        fallback=False,
        admitted_at_s=now_s,
        admitted_mono_s=number * 1e-3,
        queue_s=1.2e-5,
        first_token_s=0.021,
        total_s=0.34,
        prompt_tokens=48,
        output_tokens=64,
        finish_reason="stop",
        error_type=None,
        error_message=None,
        prompt=None,
        output=None,
        weights_digest="9f86d081884c7d659a2feaa0c55ad015",
        propensity=0.5,
    )


def sustained(folder: Path, seconds: float) -> dict[str, float]:
    """Hand rows in as fast as the queue takes them, and wait until all are committed."""
    pause = threading.Event()
    with Recorder(folder / "sustained.duckdb") as recorder:
        start, number = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            for _ in range(1000):
                recorder.request(a_row(number))
                number += 1
            while recorder.stats().queued > 40_000:
                pause.wait(0.002)
        recorder.flush()
        elapsed_s = time.perf_counter() - start
        stats = recorder.stats()
        assert stats.missing == 0 and stats.written == number, stats
    return {"rows_per_s": round(number / elapsed_s)}


def on_loop(folder: Path, seconds: float) -> dict[str, float]:
    """What a request takes from a loop that has 1,000 of them a second, while the writer and the publisher work."""
    took_us: list[float] = []

    async def serve(recorder: Recorder) -> None:
        begin = time.perf_counter()
        for number in range(int(seconds * RATE)):
            delay_s = begin + number / RATE - time.perf_counter()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            start = time.perf_counter_ns()
            recorder.request(a_row(number))
            took_us.append((time.perf_counter_ns() - start) / 1e3)

    with Recorder(folder / "loop.duckdb") as recorder:
        asyncio.run(serve(recorder))
    took_us.sort()
    return {
        "on_loop_us_median": round(statistics.median(took_us), 2),
        "on_loop_us_p99": round(took_us[int(0.99 * len(took_us))], 2),
        "on_loop_us_max": round(took_us[-1], 1),
    }


VICTIM = """
    import mmap, struct, sys, time
    sys.path.insert(0, sys.argv[3])
    from record import RATE, a_row
    from abswitch.store.recorder import Recorder
    with open(sys.argv[2], "r+b") as file:
        shared = mmap.mmap(file.fileno(), 16)
    recorder = Recorder(sys.argv[1])
    begin, number = time.perf_counter(), 0
    while True:
        due = int((time.perf_counter() - begin) * RATE)
        while number < due:
            recorder.request(a_row(number))
            number += 1
            shared[0:8] = struct.pack("q", number)
        if number % (3 * RATE) > 2.9 * RATE:
            recorder.flush()
            shared[8:16] = struct.pack("q", number)
        time.sleep(0.001)
"""


def killed(folder: Path, kills: int) -> dict[str, float]:
    """Kill a recording process at moments that have nothing to do with its own; count what is missing."""
    lost_s, lost_rows, acknowledged_lost = 0.0, 0, 0
    for at in range(kills):
        store, notes = folder / f"killed-{at}.duckdb", folder / f"notes-{at}"
        notes.write_bytes(b"\0" * 16)
        command = [sys.executable, "-c", textwrap.dedent(VICTIM), str(store), str(notes), str(Path(__file__).parent)]
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        with notes.open("r+b") as file, mmap.mmap(file.fileno(), 16) as shared:
            while struct.unpack("q", shared[0:8])[0] < 1500 + 617 * at:
                assert process.poll() is None, "the process to be killed ended by itself"
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            handed, acknowledged = struct.unpack("qq", shared[:])
        with Recorder(store) as again:
            kept, distinct = again.rows("SELECT count(*), count(DISTINCT request_id) FROM requests")[0]
            last_at_s = again.rows("SELECT max(admitted_at_s), min(admitted_at_s) FROM requests")[0]
        assert kept == distinct
        lost_rows = max(lost_rows, handed - kept)
        acknowledged_lost = max(acknowledged_lost, acknowledged - kept)
        lost_s = max(lost_s, last_at_s[1] + handed / RATE - last_at_s[0] if handed > kept else 0.0)
    return {"lost_s": round(lost_s, 3), "lost_rows": lost_rows, "acknowledged_lost": max(0, acknowledged_lost)}


def sqlite(folder: Path, requests: int) -> dict[str, float]:
    """One transaction per request, then a thousand per transaction."""
    fields = RequestRecord._fields
    connection = sqlite3.connect(folder / "requests.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(f"CREATE TABLE requests ({', '.join(fields)})")
    insert = f"INSERT INTO requests VALUES ({', '.join('?' * len(fields))})"
    took_us = []
    for number in range(requests):
        start = time.perf_counter_ns()
        connection.execute(insert, a_row(number))
        took_us.append((time.perf_counter_ns() - start) / 1e3)
    start_s = time.perf_counter()
    for first in range(0, _BATCHED, 1000):
        connection.execute("BEGIN")
        connection.executemany(insert, map(a_row, range(first, first + 1000)))
        connection.execute("COMMIT")
    batched = _BATCHED / (time.perf_counter() - start_s)
    connection.close()
    took_us.sort()
    return {
        "rows_per_s": round(1e6 / statistics.mean(took_us)),
        "rows_per_s_batched": round(batched),
        "on_loop_us_median": round(statistics.median(took_us), 2),
        "on_loop_us_p99": round(took_us[int(0.99 * len(took_us))], 2),
    }


def mlflow(folder: Path, requests: int) -> dict[str, float]:
    """Five metrics of each request, logged when it ends."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    run_id = client.create_run(client.create_experiment("record")).info.run_id
    names = ("queue_s", "first_token_s", "total_s", "prompt_tokens", "output_tokens")
    took_us = []
    for number in range(requests):
        row = a_row(number)
        start = time.perf_counter_ns()
        metrics = [Metric(name, float(getattr(row, name)), int(row.admitted_at_s * 1e3), number) for name in names]
        client.log_batch(run_id, metrics)
        took_us.append((time.perf_counter_ns() - start) / 1e3)
    took_us.sort()
    return {
        "rows_per_s": round(1e6 / statistics.mean(took_us)),
        "on_loop_us_median": round(statistics.median(took_us), 2),
        "on_loop_us_p99": round(took_us[int(0.99 * len(took_us))], 2),
    }


def table(ways: dict[str, dict[str, float]]) -> None:
    """One line per way."""
    print(f"\n{'way':<12}{'rows/s':>10}{'batched':>10}{'on the loop µs (median)':>26}{'(p99)':>10}")
    for way, found in ways.items():
        batched = f"{found['rows_per_s_batched']:>10.0f}" if "rows_per_s_batched" in found else " " * 10
        median, p99 = found["on_loop_us_median"], found["on_loop_us_p99"]
        print(f"{way:<12}{found['rows_per_s']:>10.0f}{batched}{median:>26.2f}{p99:>10.2f}")
    own = ways["abswitch"]
    print(
        f"\nkill -9: at most {own['lost_rows']:.0f} rows, the last {own['lost_s']:.3f} s; "
        f"acknowledged and lost: {own['acknowledged_lost']:.0f}"
    )


def main() -> None:
    """Run and print the line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement by time")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--requests", type=int, default=500, help="one by one, through SQLite and MLflow")
    options = parser.parse_args()
    ways: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways["abswitch"] = sustained(folder, options.seconds) | on_loop(folder, options.seconds)
        ways["abswitch"] |= killed(folder, options.kills)
        ways["sqlite"] = sqlite(folder, options.requests)
        ways["mlflow"] = mlflow(folder, options.requests)
    table(ways)
    figures = ways["abswitch"] | {f"{way}_{k}": v for way in ("sqlite", "mlflow") for k, v in ways[way].items()}
    met = all(figures[name] <= bound for name, bound in GOALS.items())
    print(json.dumps({"benchmark": "record", "figures": figures, "goals": GOALS, "met": met}))


if __name__ == "__main__":
    main()
