"""Which version served a request, why, and at which share: one documented query, asked of a real engine's store."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import abswitch
from abswitch import InvalidInput, ModelConfig, SwitchingEngine
from tests.store.test_outages import held_by_another_process
from tests.test_engine import backend

DOCS = Path(__file__).parents[1] / "docs" / "store.md"
CONFIG = ModelConfig(model_id="bot", model="script", backend="scripted")


def documented() -> str:
    blocks = re.findall(r"```sql\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    (found,) = [block for block in blocks if "FROM provenance" in block]
    return str(found)


def opened(store: Path, **options: object) -> SwitchingEngine:
    engine = SwitchingEngine(store=store, backends={"scripted": backend()}, **options)  # type: ignore[arg-type]
    for version in ("v1", "v2"):
        engine.registry.register_model(CONFIG, version)
    return engine


async def test_one_query_tells_version_reason_and_share(tmp_path: Path) -> None:
    async with opened(tmp_path / "s.duckdb") as engine:
        await engine.deploy("v1")
        before = await engine.generate("who?")
        pinned = await engine.generate("who?", version="v2")
        test = await engine.start_switch("v2", "ab_test", {"traffic_percentage": 30})
        await test.serving()
        during = [await engine.generate("who?", unit_id=f"user-{i}") for i in range(40)]
        again = await engine.generate("who?", unit_id="user-0")
        rows = {
            c.request_id: engine.query(documented(), {"request_id": c.request_id}).iloc[0]
            for c in (before, pinned, *during, again)
        }
        for completion in during:
            row = rows[completion.request_id]
            assert row.served_version == completion.served_version
            assert completion.text == f"I am {row.served_version}"
            assert row.share == row.propensity == (0.3 if completion.served_version == "v2" else 0.7)
            assert completion.unit_id in row.why and f"switch {test.operation_id}" in row.why
            assert "ab_test" in row.why and f"share of {row.share}" in row.why
            assert row.step_reason
        assert rows[before.request_id].served_version == "v1"
        assert "active version" in rows[before.request_id].why or "immediate" in rows[before.request_id].why
        assert "named v2 itself" in rows[pinned.request_id].why
        assert rows[pinned.request_id].share is None or rows[pinned.request_id].share != rows[pinned.request_id].share
        met = engine.table("assignments")
        assert len(met) == met.unit_id.nunique() == 40, "once per unit"
        assert dict(zip(met.request_id, met.version, strict=True)) == {c.request_id: c.served_version for c in during}
        await test.abort()
        await test.done()


async def test_late_scores_and_feedback_join_by_request(tmp_path: Path) -> None:
    async with opened(tmp_path / "s.duckdb") as engine:
        await engine.deploy("v1")
        done = await engine.generate("who?")
        engine.record_score(done.request_id, "judge", 0.5)
        engine.record_score(done.request_id, "judge", 0.75)
        engine.feedback(done.request_id, True, comment="thanks")
        joined = engine.query(
            "SELECT scorer, value, source, comment, served_version FROM scores JOIN requests USING (request_id) "
            "ORDER BY scorer, value"
        )
        assert joined.drop(columns="comment").values.tolist() == [
            ["feedback", 1.0, "human", "v1"],
            ["judge", 0.5, "late", "v1"],
            ["judge", 0.75, "late", "v1"],
        ]
        assert joined.comment[0] == "thanks"
        for arguments in ((7, "judge", 1.0), ("", "judge", 1.0), ("r", "no spaces", 1.0)):
            with pytest.raises(InvalidInput):
                engine.record_score(*arguments)


async def test_another_process_reads_what_a_living_engine_serves(tmp_path: Path) -> None:
    code = """
        import sys, threading
        import abswitch
        poll = threading.Event()
        with abswitch.read(sys.argv[1]) as store:
            for _ in range(400):
                found = store.query("SELECT served_version, why FROM provenance WHERE request_id = ?", [sys.argv[2]])
                if len(found):
                    break
                poll.wait(0.05)
            print(found.served_version[0], store.as_of_s is not None, len(store.table("model_versions")))
    """
    async with opened(tmp_path / "s.duckdb") as engine:
        await engine.deploy("v1")
        done = await engine.generate("who?")
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "s.duckdb"), done.request_id]
        ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=200)
        assert ran.stdout.split() == ["v1", "True", "2"], ran.stderr
        with abswitch.read(tmp_path / "s.duckdb") as store:  # and in the same process
            assert len(store.table("model_versions")) == 2


async def test_an_engine_begins_and_serves_while_something_else_has_its_file(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    async with opened(path) as engine:
        await engine.deploy("v1")
        first = await engine.generate("who?")
    with held_by_another_process(path):
        engine = SwitchingEngine(store=path, backends={"scripted": backend()})
        assert engine.registry.active_version("bot") == "v1", "what it knew is known"
        await engine.deploy("v2")
        answers = [await engine.generate("who?") for _ in range(20)]
        engine.registry.register_model(CONFIG, "v3")
        assert {a.served_version for a in answers} == {"v2"}
        assert engine.get_switching_status().rows_waiting > 0 and engine.get_switching_status().rows_missing == 0
    engine.store.flush()
    wanted = {c.request_id for c in (first, *answers)}
    got = engine.table("requests").request_id.tolist()
    assert sorted(got) == sorted(wanted), "everything, once"
    epochs = engine.query("SELECT model_id, epoch, arm FROM routes")
    assert not epochs.duplicated().any()
    assert engine.table("model_versions").version.tolist() == ["v1", "v2", "v3"]
    assert engine.get_switching_status().rows_waiting == 0
    await engine.aclose()


async def test_redaction_and_retention_by_the_engine(tmp_path: Path) -> None:
    async with opened(
        tmp_path / "s.duckdb", record_text=True, redact=lambda text: text.replace("secret", "…"), max_request_rows=2
    ) as engine:
        await engine.deploy("v1")
        for _ in range(5):
            await engine.generate("a secret")
        assert set(engine.table("requests").prompt) == {"a …"}
        await engine.deploy("v2")
        assert engine.store.retain()["requests"] == 3
        assert engine.export("requests", tmp_path / "kept.parquet").exists()
    with pytest.raises(InvalidInput, match="retention_days"):
        SwitchingEngine(store=":memory:", retention_days=0)
