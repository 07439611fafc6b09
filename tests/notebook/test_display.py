from dataclasses import replace

import pytest

from abswitch.domain import Residency
from abswitch.errors import InvalidInput
from abswitch.experiments import RequestBudget, run_canary
from abswitch.notebook import card, estimates_chart, latency_chart, show, traffic_chart
from abswitch.notebook.panel import SwitchView, split_bar
from abswitch.serving.status import ModelStatus, OperationStatus, SwitchingStatus
from tests.experiments.pages import Fragment
from tests.experiments.scripted import EVIL, ab_test, engine_for, problems


def operation(**changes: object) -> OperationStatus:
    fields: dict[str, object] = {
        "operation_id": "op-1", "model_id": "bot", "strategy": "ab_test", "stable": "v1", "candidate": "v2",
        "candidates": ("v2",), "phase": "evaluating", "finished": False, "stage": 0, "stages": 1, "share": 0.25,
        "shares": (("v1", 0.75), ("v2", 0.25)), "ramp": (0.25,), "mirror": 0.0,
        "promoted": False, "winner": None, "detached": False, "reason": EVIL,
        "age_s": 3.0, "in_phase_s": 1.0,
    }  # fmt: skip
    return OperationStatus(**{**fields, **changes})  # type: ignore[arg-type]  # a dictionary of its own fields


def status() -> SwitchingStatus:
    serving = ModelStatus(
        model_id="bot",
        active_version="v1",
        shares={"v1": 0.75, "v2": 0.25},
        loaded=("v1", "v2"),
        in_flight=1234,
        waiting=7,
        operation=operation(),
        tiers={"v1": Residency.RESIDENT, "v2": Residency.RESIDENT, "<b>v0": Residency.SLEEPING},
    )
    idle = ModelStatus(
        model_id="cold", active_version=None, shares={}, loaded=(), in_flight=0, waiting=0, operation=None
    )
    return SwitchingStatus(models=(serving, idle))


def test_a_status_is_a_table_whose_texts_are_escaped() -> None:
    html = card(status())._repr_html_()
    page = Fragment(html)
    assert EVIL not in html
    assert EVIL in page.text
    assert len([tag for tag, _ in page.tags if tag == "tr"]) == 3
    for words in (
        "v1 75%, v2 25%",
        "1,234",
        "v2 resident, <b>v0 sleeping",
        "ab_test v1 → v2: evaluating",
        "nothing serves",
        "none yet",
    ):
        assert words in page.text


def test_a_status_of_nothing() -> None:
    assert "no model is registered" in card(SwitchingStatus(models=())).to_html()
    assert repr(card(SwitchingStatus(models=()))) == "no model is registered"


def test_an_operation_shows_how_traffic_is_split() -> None:
    page = Fragment(card(operation()).to_html())
    widths = [float(a["width"] or 0) for tag, a in page.tags if tag == "rect"]
    assert widths == [450.0, 150.0]
    assert "v1 75%" in page.text
    assert "v2 25%" in page.text


def test_several_candidates_a_ramp_and_copies_are_shown() -> None:
    shares = (("v1", 0.8), ("v2", 0.1), ("<b>v3", 0.1))
    page = Fragment(
        card(operation(shares=shares, ramp=(0.2, 0.5, 1.0), stages=3, candidates=("v2", "<b>v3"))).to_html()
    )
    fills = [attributes["fill"] for tag, attributes in page.tags if tag == "rect"]
    assert len(set(fills)) == 3, "every version has a colour of its own"
    assert "<b>v3 10%" in page.text and "stage 1 of 3: 20% → 50% → 100%" in page.text
    assert "copies of 30% of requests go to v2" in Fragment(card(operation(mirror=0.3)).to_html()).text


def test_a_first_deployment_has_no_stable_version() -> None:
    assert "nothing 100%" in Fragment(split_bar((), None)).text
    assert "nothing → v1" in SwitchView(operation(stable=None, candidates=("v1",))).to_text()


async def test_verdict_and_result(capsys: pytest.CaptureFixture[str]) -> None:
    async with ab_test(n=200) as (engine, result):
        verdict = Fragment(card(result.verdict).to_html())
        whole = Fragment(card(result).to_html())
        charts = [estimates_chart(result), latency_chart(engine, result), traffic_chart(engine, result)]
    assert result.verdict.headline in verdict.text
    for reason in result.verdict.reasons:
        assert reason in verdict.text
    for words in ("exact_match", "±5 points", "better", "200 requests sent, 200 answered, 0 failed, 0 lost"):
        assert words in whole.text
    for chart in charts:
        png, size = chart._repr_png_()
        assert png.startswith(b"\x89PNG")
        assert size["width"] == 720
        assert chart.svg().startswith("<svg ")

    show(result.verdict)
    assert capsys.readouterr().out == result.verdict.in_words() + "\n"
    show(charts[0])
    assert "exact_match" in capsys.readouterr().out


async def test_a_canary(capsys: pytest.CaptureFixture[str]) -> None:
    async with engine_for({"v1": 0.6, "v2": 0.9}) as engine:
        await engine.deploy("v1")
        held = await run_canary(engine, "v2", problems(30), budget=RequestBudget(requests=20))
    result = replace(held, decision="roll back", reason=EVIL)
    html = card(result).to_html()
    assert EVIL not in html
    page = Fragment(html)
    for words in (result.headline, *result.reasons, "20 requests sent, 20 answered, 0 failed, 0 lost"):
        assert words in page.text
    show(held)
    told = capsys.readouterr().out
    assert told.startswith("HOLD: v2 has not earned all its steps yet.")
    assert "20 requests sent" in told


def test_anything_else_is_refused() -> None:
    with pytest.raises(InvalidInput, match="a verdict"):
        card("ship")
    with pytest.raises(InvalidInput, match="a verdict"):
        show("ship")  # type: ignore[arg-type]  # that is what is refused
