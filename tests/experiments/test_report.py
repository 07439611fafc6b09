import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from abswitch.errors import InvalidInput
from abswitch.experiments import SwitchTiming, run_ab_test, switch_timing
from abswitch.experiments.files import write_atomically
from abswitch.experiments.report import write_report
from abswitch.experiments.summary import schema
from abswitch.stats import Rate
from tests.experiments.pages import Page
from tests.experiments.rows import look
from tests.experiments.scripted import EVIL, METRICS, ab_test, engine_for, problems

SCHEMA = jsonschema.Draft202012Validator(schema(), format_checker=jsonschema.FormatChecker())
DOCUMENTED = (Path(__file__).parents[2] / "docs" / "summary.md").read_text(encoding="utf-8")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(folder: Path) -> tuple[Page, dict[str, Any]]:
    """The page, as a strict parser has it, and the summary, held against its schema."""
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    SCHEMA.validate(summary)
    return page, summary


async def test_a_shipped_experiment(tmp_path: Path) -> None:
    async with ab_test(store=tmp_path / "evidence.duckdb") as (engine, result):
        await result.promote()
        await engine.generate("1+1=")
        await result.handle.done()
        timing = switch_timing(engine, result.operation_id)
        written = write_report(engine, result, tmp_path / "report", switch=timing, extra={"seed": 7, "odd": math.nan})
    assert written == tmp_path / "report" / "index.html"
    page, summary = read(tmp_path / "report")
    assert page.text.index(result.verdict.headline) < page.text.index("difference")
    for words in (*result.verdict.reasons, result.plan.digest(), result.operation_id, "400 of 400", "none lost"):
        assert words in page.text

    assert summary["verdict"]["decision"] == "ship"
    assert summary["verdict"]["rule"] == "primary-better"
    assert summary["verdict"]["reasons"] == list(result.verdict.reasons)
    assert summary["requests"] == {"sent": 400, "answered": 400, "failed": 0, "lost": 0}
    assert summary["n"]["baseline"] + summary["n"]["candidate"] == 400
    assert summary["switch"] == {
        "operation_id": result.operation_id,
        "routed_s": timing.routed_s,
        "first_token_s": timing.first_token_s,
        "drained_s": timing.drained_s,
    }
    assert 0 < summary["switch"]["routed_s"] <= summary["switch"]["first_token_s"]
    assert summary["plan_digest"] == result.plan.digest()
    assert summary["extra"] == {"seed": 7, "odd": None}
    assert summary["store"] == str(tmp_path / "evidence.duckdb")
    assert summary["versions"]["candidate"]["sampling"]["temperature"] == 1.0
    exact = summary["estimates"][0]
    assert (exact["name"], exact["role"], exact["margin"]) == ("exact_match", "primary", 0.05)
    found = exact["comparison"]
    assert found["low"] < found["estimate"] < found["high"]
    assert found["estimate"] == pytest.approx(found["candidate"]["value"] - found["baseline"]["value"])
    assert set(summary["environment"]) >= {"abswitch", "vllm", "torch", "duckdb", "python", "cpu_count"}


async def test_the_documented_keys_are_the_ones_there_are(tmp_path: Path) -> None:
    async with ab_test(n=60) as (engine, result):
        write_report(engine, result, tmp_path)
    _, summary = read(tmp_path)
    rows = [line.split("|")[1].strip(" `") for line in DOCUMENTED.splitlines() if line.startswith("| `")]
    assert sorted(row for row in rows if "." not in row) == sorted(summary)
    for row in rows:
        value: Any = summary
        for key in row.split("."):
            if value is None:
                break
            assert key in value, row
            value = value[key]


async def test_the_page_loads_nothing_and_its_figures_are_inside_once(tmp_path: Path) -> None:
    async with ab_test(n=60) as (engine, result):
        for number in (98, 99):  # how many looks there were is a matter of speed
            engine.store.look(look(number, operation_id=result.operation_id, metric="exact_match"))
        write_report(engine, result, tmp_path)
    page, summary = read(tmp_path)
    loaded = page.loaded()
    assert all(address.startswith("data:") for address in loaded)
    assert len([address for address in loaded if address != "data:,"]) == len(page.all("img")) == 4
    assert len(set(loaded)) == len(loaded)
    assert len(page.html) < 400_000
    for sign in ("@import", "<script", "javascript:"):
        assert sign not in page.html
    assert "url(" not in page.all("style")[0].text  # type: ignore[operator]  # a page has its style
    policy = next(meta.get("content") for meta in page.all("meta") if meta.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    written = [
        "estimates.png", "index.html", "latency.png", "looks.png", "pull_request.md", "shares.png", "summary.json",
        "traffic.png",
    ]  # fmt: skip
    assert names_in(tmp_path) == summary["files"] == written
    for name in ("estimates", "latency", "looks", "shares", "traffic"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


NASTY = (
    f"{EVIL}</pre></script><!-- ]]> &amp; \"' \u202eevil\x00\x1b[31m\x85\ufffe \u05e9\u05dc\u05d5\u05dd\r\n{'w' * 900}"
)


async def test_text_from_outside_is_never_markup(tmp_path: Path) -> None:
    async with ab_test(n=60, suffix=NASTY) as (engine, result):
        write_report(engine, result, tmp_path, extra={EVIL: NASTY})
    page, summary = read(tmp_path)
    assert not page.all("script", "iframe", "object", "b", "i")
    assert EVIL not in page.html
    assert page.text.count(EVIL) >= 5  # prompts, prompt template, metadata, extra's name and value
    assert summary["extra"] == {EVIL: NASTY}
    shown = page.section("examples")
    for picture in ("</pre></script><!-- ]]> &amp; \"'", "⟨U+202E⟩evil␀␛[31m", "שלום", "␍"):
        assert picture in shown
    for raw in ("\u202e", "\x00", "\x1b", "\x85", "\ufffe"):
        assert raw not in page.html
    markdown = (tmp_path / "pull_request.md").read_text(encoding="utf-8")
    assert "<script" not in markdown


async def test_what_was_not_recorded_is_in_no_file(tmp_path: Path) -> None:
    async with engine_for({"v1": 0.58, "v2": 0.91}, record_text=False) as engine:
        await engine.deploy("v1")
        secrets = [(f"{prompt}{EVIL} secret-{i}", answer) for i, (prompt, answer) in enumerate(problems(60))]
        result = await run_ab_test(engine, "v2", secrets, metrics=METRICS, experiment="sums")
        write_report(engine, result, tmp_path)
    page, _ = read(tmp_path)
    assert "No texts were recorded" in page.section("examples")
    for name in names_in(tmp_path):
        assert b"secret-" not in (tmp_path / name).read_bytes()


async def test_worst_answers_are_wrong_ones_of_each_arm(tmp_path: Path) -> None:
    async with ab_test(n=200, suffix="") as (engine, result):
        write_report(engine, result, tmp_path)
    page, _ = read(tmp_path)
    worst = page.section("examples")
    assert worst.count("exact_match 0,") == 10
    assert "exact_match 1," not in worst


async def test_no_verdict_for_want_of_data_is_reported_as_such(tmp_path: Path) -> None:
    async with ab_test(n=12, candidate=0.58) as (engine, result):
        write_report(engine, result, tmp_path)
    page, summary = read(tmp_path)
    assert summary["verdict"]["decision"] == "invalid"
    assert "INVALID" in page.text
    assert summary["switch"] is None
    assert "v2 was not promoted" in page.section("traffic")
    assert "one look at the data" in page.section("looks") or summary["looks"]
    assert "No alert fired" in page.section("health")


async def test_a_worse_candidate_and_two_equal_ones(tmp_path: Path) -> None:
    async with ab_test(candidate=0.3) as (engine, result):
        await result.keep()
        write_report(engine, result, tmp_path / "worse")
    async with ab_test(candidate=0.58, metrics=[Rate("exact_match", margin=0.05)]) as (engine, result):
        write_report(engine, result, tmp_path / "same")
    assert read(tmp_path / "worse")[1]["verdict"]["decision"] == "keep"
    page, summary = read(tmp_path / "same")
    assert summary["verdict"]["decision"] in ("inconclusive", "equivalent")
    assert "better" not in summary["verdict"]["headline"]
    assert "with the baseline" in page.text


async def test_an_unfinished_switch_and_extra_that_is_no_json(tmp_path: Path) -> None:
    timing = SwitchTiming(operation_id="op-1", routed_s=0.001, first_token_s=None, drained_s=None)
    async with ab_test(n=60) as (engine, result):
        with pytest.raises(InvalidInput, match="extra"):
            write_report(engine, result, tmp_path / "refused", extra={"engine": engine})
        assert not (tmp_path / "refused").exists()
        write_report(engine, result, tmp_path, switch=timing)
    page, _ = read(tmp_path)
    assert "after 1.0 ms" in page.text
    assert "not yet" in page.text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    write_atomically(target, b"old")
    target.chmod(0o644)
    with pytest.raises(TypeError):
        write_atomically(target, "not bytes")  # type: ignore[arg-type]  # that is the failure
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
