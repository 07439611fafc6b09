"""The page over all runs: trends of sound ones, and a row with the reason for whatever else lies there."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from abswitch.errors import InvalidInput
from abswitch.experiments.overview import refresh, write_overview
from abswitch.experiments.past_runs import PastRun, past_runs
from abswitch.experiments.report import write_report
from tests.experiments.pages import SVG, Page
from tests.experiments.scripted import ab_test

BEGAN_S = 1_790_000_000.0
RUN = {"status": "finished", "started_at_s": BEGAN_S, "cell": {"sampling.temperature": 0.5}}
RESULT: dict[str, Any] = {
    "decision": "ship",
    "headline": "SHIP v2: it is <b>better</b> than v1.",
    "exit_status": 0,
    "started_at_s": BEGAN_S,
    "ended_at_s": BEGAN_S + 90,
    "requests": {"sent": 10, "answered": 9, "failed": 1, "lost": 0},
    "alerts": ["slower"],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real report, made once."""
    folder = tmp_path_factory.mktemp("report")
    async with ab_test(n=60) as (engine, result):
        write_report(engine, result, folder)
    return folder


def laid(folder: Path, *, run: Any = None, result: Any = None, summary: Any = None) -> Path:
    """A run's folder with these files; a text is written as it is, all else as JSON."""
    folder.mkdir(parents=True)
    for name, content in (("run.json", run), ("result.json", result), ("summary.json", summary)):
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder


def shifted(report: Path, difference: float) -> dict[str, Any]:
    """A real summary, its primary's difference moved."""
    summary: dict[str, Any] = json.loads((report / "summary.json").read_text("utf-8"))
    found = summary["estimates"][0]["comparison"]
    found |= {"estimate": difference, "low": difference - 0.1, "high": difference + 0.1}
    return summary


def page_of(reports: Path) -> Page:
    return Page(write_overview(reports).page.read_text("utf-8"))


def test_trends_and_rows(tmp_path: Path, report: Path) -> None:
    for day in range(3):
        began = {"started_at_s": BEGAN_S + 86_400 * day}
        folder = laid(
            tmp_path / "nightly" / f"day-{day}", run=RUN | began, result=RESULT | began,
            summary=shifted(report, 0.1 * day),
        )  # fmt: skip
        shutil.copy(report / "index.html", folder)
        (folder / "run.ipynb").write_text("{}")
    written = write_overview(tmp_path)
    assert (written.runs, written.experiments, written.unreadable) == (3, 1, ())
    page = Page(written.page.read_text("utf-8"))
    assert page.text.index("day-2") < page.text.index("day-1") < page.text.index("day-0"), "the latest first"
    plots = [one for one in page.tree.iter() if one.tag == f"{SVG}svg"]
    assert "over 3 runs, in the last +20.0 points" in (plots[0].get("aria-label") or "")
    marks = [float((one.get("cy") or "").rstrip("%")) for one in plots[0].iter() if one.tag == f"{SVG}circle"]
    assert marks == sorted(marks, reverse=True) and len(set(marks)) == 3, "the difference grew"
    links = {str(link.get("href")) for link in page.all("a")}
    assert {"nightly/day-0/index.html", "nightly/day-0/summary.json", "nightly/day-0/run.ipynb"} <= links
    for words in ("sampling.temperature 0.5", "9 of 10", "1 failed", "90 s", "1 alert", "v1 → v2"):
        assert words in page.text
    assert not page.all("b")
    assert all(address.startswith("data:") for address in page.loaded())


BROKEN: dict[str, dict[str, Any]] = {
    "half a line": {"run": '{"run_id": "x", "sta'},
    "nothing": {"run": ""},
    "a list": {"run": [1, 2]},
    "nested": {"result": "[" * 100_000},
    "no decision": {"run": RUN, "result": {key: value for key, value in RESULT.items() if key != "decision"}},
    "decision a number": {"run": RUN, "result": RESULT | {"decision": 7}},
    "requests a text": {"run": RUN, "result": RESULT | {"requests": "many"}},
    "status a word": {"run": RUN, "result": RESULT | {"exit_status": "fine"}},
    "cell a number": {"run": RUN | {"cell": 3}, "result": RESULT},
    "no verdict": {"summary": {"requests": RESULT["requests"], "started_at": "2026-11-28"}},
    "no instant": {"summary": {"verdict": {"decision": "ship", "headline": "x"}, "started_at": "yesterday"}},
}


def test_what_cannot_be_read_is_a_row_with_its_reason(tmp_path: Path) -> None:
    for name, files in BROKEN.items():
        laid(tmp_path / "broken" / name, **files)
    (tmp_path / "broken" / "bytes").mkdir()
    (tmp_path / "broken" / "bytes" / "run.json").write_bytes(b"\xff\xfe\x00")
    laid(tmp_path / "sound" / "run", run=RUN, result=RESULT)
    written = write_overview(tmp_path)
    assert {Path(run.name).name for run in written.unreadable} == {*BROKEN, "bytes"}
    assert all(run.problem for run in written.unreadable)
    page = Page(written.page.read_text("utf-8"))
    assert page.text.count("unreadable") == len(BROKEN) + 2, "in its row, and once where experiments stand"
    assert "'decision' is missing" in page.text
    assert "SHIP v2" in page.text


@pytest.mark.parametrize(
    "summary",
    ["{", [], {"versions": {}}, {"versions": {"baseline": 1, "candidate": 2}}, {"estimates": [{"comparison": None}]}],
)
def test_a_broken_summary_does_not_hide_the_result(tmp_path: Path, summary: Any) -> None:
    laid(tmp_path / "e" / "run", run=RUN, result=RESULT, summary=summary)
    (run,) = past_runs(tmp_path)
    assert (run.status, run.estimate) == ("ship", None)
    assert run.problem.startswith("summary.json:")


def test_runs_without_a_verdict(tmp_path: Path) -> None:
    laid(tmp_path / "e" / "a", run=RUN | {"status": "running"})
    laid(tmp_path / "e" / "b", run=RUN | {"status": "failed"})
    assert {Path(run.name).name: run.status for run in past_runs(tmp_path)} == {"a": "unfinished", "b": "failed"}
    assert "No run has estimates" in page_of(tmp_path).text


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "notes" / "mine").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    laid(tmp_path / ".hidden" / "run", run=RUN)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    page = page_of(tmp_path)
    assert "No run has been made yet" in page.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "README.md", "index.html", "loop", "notes"]


def test_a_report_written_by_hand_counts(tmp_path: Path, report: Path) -> None:
    shutil.copytree(report, tmp_path / "quickstart")
    laid(tmp_path / "quickstart" / "run-1", run=RUN, result=RESULT, summary=shifted(report, 0.3))
    names = {run.name: run.versions for run in past_runs(tmp_path)}
    assert names == {"quickstart": ("v1", "v2"), "quickstart/run-1": ("v1", "v2")}


def test_metrics_of_another_kind_are_shown_plainly(tmp_path: Path, report: Path) -> None:
    summary = shifted(report, 0.25)
    summary["estimates"][0]["kind"] = "of the future"
    laid(tmp_path / "e" / "run", run=RUN, result=RESULT, summary=summary)
    assert "+0.250" in page_of(tmp_path).text


def test_a_folder_name_cannot_break_out(tmp_path: Path) -> None:
    laid(tmp_path / 'a"><script>x<' / "r&n#1", run=RUN, result=RESULT)
    page = page_of(tmp_path)
    assert not page.all("script")
    assert "<script>x<" in page.text


def test_very_many_runs_are_cut(tmp_path: Path) -> None:
    for number in range(203):
        laid(tmp_path / "e" / f"{number:04d}", run=RUN, result=RESULT)
    page = page_of(tmp_path)
    assert "3 older runs" in page.text
    assert "0202" in page.text and "0002" not in page.text


def test_there_must_be_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidInput, match="reports"):
        write_overview(tmp_path / "nowhere")
    with caplog.at_level(logging.WARNING):
        refresh(tmp_path / "nowhere")
    assert "was not written" in caplog.text, "never the run's problem"


def test_an_unfinished_run_has_no_verdict() -> None:
    assert not PastRun(experiment="e", name="n", status="failed").finished
