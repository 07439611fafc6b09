"""Texts pass the hook before they reach a disk, and a hook that fails stores nothing."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from abswitch.domain import ScoreRecord
from abswitch.errors import InvalidInput
from abswitch.store.recorder import Recorder
from abswitch.store.spool import folder_of
from tests.store.rows import a_request
from tests.store.test_outages import held_by_another_process

SECRET = "4111-1111"


def mask(text: str) -> str | None:
    if "explode" in text:
        raise ValueError(text)
    if "forget" in text:
        return None
    return re.sub(r"\d", "#", text)


def test_texts_are_redacted_and_nothing_else_is() -> None:
    with Recorder(":memory:", redact=mask) as recorder:
        recorder.request(a_request("r1", prompt=f"card {SECRET}", output="ok", error_message=f"at {SECRET}"))
        recorder.request(a_request("r2", prompt=None, output=None))
        recorder.request(a_request("r3", prompt="forget me", output="fine 1"))
        recorder.score(ScoreRecord("r1", "exact", 1.0, None, 1.0))
        rows = recorder.rows("SELECT request_id, prompt, output, error_message FROM requests ORDER BY 1")
        assert rows == [
            ("r1", "card ####-####", "ok", "at ####-####"),
            ("r2", None, None, None),
            ("r3", None, "fine #", None),
        ]
        assert recorder.stats().unredacted == 0


@pytest.mark.parametrize("hook", [mask, lambda text: 7])
def test_a_failing_hook_stores_nothing_and_counts(hook: object, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "abswitch.store"),
        Recorder(":memory:", redact=hook) as recorder,  # type: ignore[arg-type]  # one of them is wrong
    ):
        recorder.request(a_request("r1", prompt=f"explode {SECRET}", output=f"explode {SECRET}"))
        recorder.request(a_request("r2", prompt=f"explode {SECRET}", output=None))
        assert recorder.rows("SELECT prompt, output FROM requests") == [(None, None)] * 2
        assert recorder.stats().unredacted == 3 and recorder.stats().written == 2
    assert len(caplog.records) == 1 and SECRET not in caplog.text


def test_the_spool_never_sees_what_was_redacted(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    Recorder(path).close()
    with held_by_another_process(path):
        with Recorder(path, flush_interval_s=0.01, spool_while_held=True, redact=mask) as recorder:
            recorder.request(a_request("r1", prompt=f"card {SECRET}"))
        (spool,) = folder_of(path).iterdir()
        content = spool.read_text(encoding="utf-8")
        assert "card ####-####" in content and SECRET not in content
        assert spool.stat().st_mode & 0o077 == 0, "for its owner's eyes only"


def test_a_hook_must_be_callable() -> None:
    with pytest.raises(InvalidInput, match="redact"):
        Recorder(":memory:", redact="yes")  # type: ignore[arg-type]  # wrong on purpose
