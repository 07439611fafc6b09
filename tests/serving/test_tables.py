"""What a notebook shows of statuses: tables without a parse error, where nothing from outside is taken for markup."""

from __future__ import annotations

import pytest

from abswitch import SwitchingEngine
from abswitch.serving.scripted import ScriptedBackend
from abswitch.serving.status import SwitchingStatus
from abswitch.serving.tables import figure, named, paragraph, table
from tests.experiments.pages import Fragment

EVIL = "<script>alert(1)</script>"


@pytest.mark.parametrize("html", [table((EVIL,), [(EVIL,), (EVIL,)]), named([(EVIL, EVIL)]), paragraph(EVIL)])
def test_whatever_is_in_a_cell_is_escaped(html: str) -> None:
    assert EVIL not in html and EVIL in Fragment(html).text


def test_what_is_not_known_is_a_dash() -> None:
    assert (figure(None, ".1%"), figure(0.25, ".1%"), figure(1234.5, ",.0f", " ms")) == ("–", "25.0%", "1,234 ms")


async def test_statuses_health_and_validations_render_themselves() -> None:
    scripted = ScriptedBackend(lambda _: ("hi",))
    async with SwitchingEngine(store=":memory:", backends={"scripted": scripted}) as engine:
        for version in ("v1", "v2", "v3"):
            engine.registry.register_model({"model_id": "bot", "model": "script", "backend": "scripted"}, version)
        await engine.deploy("v1")
        switch = await engine.start_switch("v2", "ab_test", {"traffic_percentage": 25})
        await switch.serving()
        await engine.generate("x", version="v1")
        await switch.pause(EVIL)
        status, health = engine.get_switching_status(), engine.health()
        refused = await engine.validate_switch_request("bot", EVIL)
        shown = {
            "v2 25%, v1 75%": status,
            "ab_test v1 → v2: paused": status["bot"],
            "bot, ab_test v1 → v2": switch.status,
            "latency p95": health,
            "bot:v1": health.version("v1"),
            "allowed: one of v1, v2, v3": refused,
            "held by operation": await engine.validate_switch_request("bot", "v3"),
        }
        for words, one in shown.items():
            html = one._repr_html_()  # type: ignore[attr-defined]
            assert EVIL not in html and words in Fragment(html).text, words
        assert EVIL in Fragment(status._repr_html_()).text and EVIL in Fragment(refused._repr_html_()).text
        assert not refused and str(refused).startswith("refused: version: got")
        await switch.abort()
        await switch.done()
        may = await engine.validate_switch_request("bot", "v3", "canary")
        assert str(may).startswith("valid: the switch could begin now\nbot, canary v1 → v3: can begin\n")
        assert "can begin" in Fragment(may._repr_html_()).text


def test_records_that_were_dropped_are_told() -> None:
    status = SwitchingStatus(models=(), rows_missing=3)
    assert str(status) == "no model is registered\n3 records were dropped"
    assert Fragment(status._repr_html_()).text == "no model is registered3 records were dropped"
