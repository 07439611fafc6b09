from __future__ import annotations

from pathlib import Path

import pytest

from abswitch.experiments.looks import MOST_POINTS, curves_of, leading, looks_chart
from abswitch.experiments.readings import Unit
from abswitch.store.recorder import Recorder
from tests.experiments.rows import look
from tests.experiments.scripted import engine_for


async def test_curves_are_read_thinned_and_drawn(tmp_path: Path) -> None:
    async with engine_for({"v1": 0.5}, store=tmp_path / "s.duckdb") as engine:
        store: Recorder = engine.store
        for number in range(1, 1001):
            store.look(look(number))
            store.look(look(number, metric="latency_s", role="guardrail"))
        for number in (1, 2, 3):
            store.look(look(number, arm="candidate-2", estimate=None if number == 1 else -0.1))
        curves = curves_of(engine, "op-1")
        assert curves_of(engine, "op-2") == ()
    assert [(c.metric, c.arm) for c in curves] == [
        ("exact", "candidate"), ("exact", "candidate-2"), ("latency_s", "candidate"),
    ]  # fmt: skip
    assert len(curves[0].points) == MOST_POINTS
    assert (curves[0].points[0].look, curves[0].points[-1].look) == (1, 1000)
    shown = leading(curves)
    assert [curve.arm for curve in shown] == ["candidate", "candidate-2"]
    points = Unit(100.0, " %", " points", 1)
    chart = looks_chart(shown, {"candidate": "v2", "candidate-2": "v3"}, points, margin=0.05)
    assert chart.finding == "After 1,000 looks: v2 +20.0 points, v3 −10.0 points"
    alone = looks_chart(shown[:1], {}, points, margin=None)
    assert alone.finding.endswith("+20.0 points, +19.9 to +20.1: clear of zero")
    low, high = alone.axes[0].get_ylim()
    assert -0.2 < low < 0.0 and 0.2 < high < 0.5, "what the first looks leave open does not flatten the rest"


@pytest.mark.parametrize("estimates", [[0.1], [None, None, 0.1]])
async def test_one_look_is_no_curve(tmp_path: Path, estimates: list[float | None]) -> None:
    async with engine_for({"v1": 0.5}, store=tmp_path / "s.duckdb") as engine:
        for number, estimate in enumerate(estimates, start=1):
            engine.store.look(look(number, estimate=estimate))
        assert leading(curves_of(engine, "op-1")) == ()
