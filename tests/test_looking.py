"""Looks at an operation's rows: when they are due, what they leave behind, and going on after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from abswitch.domain import RouteRecord, ScoreRecord
from abswitch.errors import InvalidInput
from abswitch.looking import Looks, PlannedJudge, Standing, plan_of
from abswitch.rollout.judging import Judgement, Ruling
from abswitch.rollout.operation import Operation, Phase
from abswitch.rollout.strategies import ABTestStrategy
from abswitch.stats import AnalysisPlan, FamilyPlan, Rate
from abswitch.store.recorder import PlanRecord, Recorder
from tests.patience import PATIENCE_S
from tests.store.rows import a_request

METRICS = (Rate("ok", margin=0.02), Rate("error", role="guardrail", margin=0.1))
PLAN = AnalysisPlan(
    baseline="v1", candidate="v2", metrics=METRICS, expected_share=0.5, planned_n=400, evaluation="sequential"
)
FAMILY = FamilyPlan(replace(PLAN, expected_share=1 / 3, planned_n=600), (("v3", 1 / 3),))
ARMS = {"stable": "v1", "candidate": "v2", "candidate-2": "v3"}


class World:
    """A store with an operation whose requests end as a test wants."""

    def __init__(self, recorder: Recorder, plan: AnalysisPlan | FamilyPlan) -> None:
        self.recorder, self.plan, self._numbers = recorder, plan, count()
        recorder.plan(PlanRecord("op", plan.digest(), plan.to_dict(), 1.0)).result(PATIENCE_S)
        for arm, version in ARMS.items():
            recorder.route(RouteRecord("bot", 1, "op", 0, arm, version, 1 / 3, 1.0, 1.0))
        self.looks = self.new_looks()

    def new_looks(self) -> Looks:
        return Looks(self.recorder, "op", self.plan, wall_s=lambda: 5.0)

    def ended(self, n: int, **rates: float) -> None:
        """So many requests in each arm; of each arm's, the first part is right."""
        for arm, rate in rates.items():
            name = arm.replace("candidate2", "candidate-2")
            for i in range(n):
                number = next(self._numbers)
                version = ARMS[name]
                self.recorder.request(
                    a_request(f"r{number}", arm=name, assigned_version=version, served_version=version,
                              unit_id=f"u{number}")
                )  # fmt: skip
                self.recorder.score(ScoreRecord(f"r{number}", "ok", float(i < round(n * rate)), None, 1.0))

    def look(self) -> Standing | None:
        return self.looks.take(self.looks.mark())

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.recorder.rows(sql)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder(":memory:") as made:
        yield made


def test_a_look_is_due_when_enough_requests_ended(recorder: Recorder) -> None:
    world = World(recorder, PLAN)
    assert world.look() is None and world.looks.wanting == 20
    world.ended(9, stable=0.5, candidate=0.5)
    assert world.look() is None and world.looks.wanting == 2
    world.ended(1, stable=1.0, candidate=1.0)
    found = world.look()
    assert found is not None and found.look == 1 and not found.is_final and world.looks.wanting == 20
    assert world.look() is None
    assert world.rows("SELECT look, rule FROM verdicts") == [(1, "continue")]


def test_every_look_leaves_a_point_of_every_curve(recorder: Recorder) -> None:
    world = World(recorder, PLAN)
    for _ in range(3):
        world.ended(20, stable=0.5, candidate=0.55)
        assert world.look() is not None
    rows = world.rows("SELECT metric, role, arm, look, n_baseline, decision, at_s FROM looks ORDER BY metric, look")
    assert [row for row in rows if row[0] == "ok"] == [
        ("ok", "primary", "candidate", look, 20 * look, "undecided", 5.0) for look in (1, 2, 3)
    ]
    assert {row[0]: row[1] for row in rows} == {"ok": "primary", "error": "guardrail", "sample_ratio": "validity"}
    assert [row[5] for row in rows if row[0] == "sample_ratio"] == ["as planned"] * 3


def test_the_look_that_decides_has_the_last_word_unless_all_data_say_the_same(recorder: Recorder) -> None:
    world = World(recorder, PLAN)
    world.ended(100, stable=0.5, candidate=0.95)
    found = world.look()
    assert found is not None and found.is_final and found.verdicts["v2"].rule == "primary-better"
    world.ended(5, stable=1.0, candidate=1.0)
    same = world.looks.close()
    assert same.verdicts["v2"].rule == "primary-better" and same.evidence["v2"].baseline.assigned == 105
    assert (same.look, same.verdicts["v2"].look) == (2, 2)
    world.ended(100, stable=1.0, candidate=0.0)  # what came after the end, and would have told otherwise
    other = world.looks.close()
    assert other.verdicts["v2"].rule == "primary-better" and other.evidence["v2"] == found.evidence["v2"]


def test_the_budget_ends_undecided_with_what_is_still_needed(recorder: Recorder) -> None:
    world = World(recorder, PLAN)
    world.ended(200, stable=0.5, candidate=0.52)
    assert world.look() is not None
    found = world.looks.close()
    verdict = found.verdicts["v2"]
    assert verdict.rule == "interval-includes-zero" and "takes about" in verdict.reasons[0]
    assert (found.look, verdict.look) == (1, 1), "nothing came since the look before: it is the last one now"
    assert world.rows("SELECT look, rule FROM verdicts") == [(1, "interval-includes-zero")]


def test_another_process_goes_on_counting(recorder: Recorder) -> None:
    world = World(recorder, PLAN)
    world.ended(20, stable=0.5, candidate=0.5)
    assert world.look() is not None
    world.looks = world.new_looks()
    assert not world.looks.was_over and world.looks.wanting == 60, "all rows are read again, the look is not"
    assert world.look() is None
    world.ended(20, stable=0.5, candidate=1.0)
    found = world.look()
    assert found is not None and found.look == 2
    world.looks.close()
    assert world.new_looks().was_over


def test_planned_looks_fall_at_their_part_of_the_requests(recorder: Recorder) -> None:
    plan = replace(PLAN, evaluation="group_sequential", look_every=None, look_count=4)
    world, seen = World(recorder, plan), []
    for _ in range(20):
        world.ended(10, stable=0.5, candidate=0.5)
        found = world.look()
        seen += [] if found is None else [(found.look, found.evidence["v2"].baseline.assigned)]
    assert seen == [(1, 50), (2, 100), (3, 150)], "the fourth is the last one"
    again = world.new_looks()
    found = again.close()
    assert found.look == 4 and found.verdicts["v2"].alpha_spent == 0.05
    spent = world.rows("SELECT alpha_spent FROM looks WHERE metric = 'ok' ORDER BY look")
    assert spent == sorted(spent) and spent[-1] == (0.05,)


def test_planned_looks_keep_what_they_decided(recorder: Recorder) -> None:
    world = World(recorder, replace(PLAN, evaluation="group_sequential", look_every=None))
    world.ended(150, stable=0.2, candidate=1.0)
    found = world.look()
    assert found is not None and found.is_final
    world.ended(10, stable=0.2, candidate=1.0)
    assert world.looks.close().evidence["v2"] == found.evidence["v2"]


def test_several_candidates_end_one_by_one(recorder: Recorder) -> None:
    world = World(recorder, FAMILY)
    world.ended(100, stable=0.6, candidate=0.62, candidate2=0.98)
    found = world.look()
    assert found is not None and not found.is_final
    assert {version: one.rule for version, one in found.verdicts.items()} == {"v2": "continue", "v3": "primary-better"}
    world.ended(100, stable=0.6, candidate=0.2, candidate2=0.5)
    found = world.look()
    assert found is not None and found.is_final and found.winner == "v3"
    assert found.verdicts["v2"].rule == "primary-worse" and found.verdicts["v3"].look == 1, "it had ended before"
    ended = world.looks.close()
    assert ended.winner == "v3" and ended.decision == "ship"
    assert {row[0] for row in world.rows("SELECT DISTINCT arm FROM looks")} == {"candidate", "candidate-2"}
    decision, winner = world.rows("SELECT decision, body->>'winner' FROM verdicts ORDER BY look DESC LIMIT 1")[0]
    assert (decision, winner) == ("ship", "v3")


def test_each_pair_is_its_own_arms(recorder: Recorder) -> None:
    world = World(recorder, FAMILY)
    world.ended(50, stable=0.5, candidate=0.6, candidate2=0.7)
    growing, whole = world.look(), world.looks.close()
    assert growing is not None
    for version, rate in (("v2", 0.6), ("v3", 0.7)):
        assert growing.evidence[version] == whole.evidence[version]
        assert whole.verdicts[version].comparisons["ok"].candidate.value == pytest.approx(rate)


# --- judging live traffic ---------------------------------------------------------------------------------------------


async def judged(world: World) -> Judgement:
    async def caught_up() -> None:
        return None

    operation = Operation(
        operation_id="op", model_id="bot", stable="v1", candidate="v2", strategy=ABTestStrategy(),
        phase=Phase.EVALUATING, created_s=0.0, phase_since_s=0.0,
    )  # fmt: skip
    return await PlannedJudge(world.recorder, caught_up)(operation)


async def test_a_test_without_news_holds(recorder: Recorder) -> None:
    world = World(recorder, PLAN)
    world.ended(5, stable=0.5, candidate=0.5)
    waiting = await judged(world)
    assert waiting.ruling is Ruling.HOLD and "10 more requests" in waiting.reason
    world.ended(30, stable=0.5, candidate=0.55)
    looked = await judged(world)
    assert looked.ruling is Ruling.HOLD and looked.reason.startswith("look 1: v2: Not decided yet")


@pytest.mark.parametrize(
    ("rates", "ruling", "words"),
    [((0.5, 0.98), Ruling.ADVANCE, "SHIP v2"), ((0.98, 0.5), Ruling.ROLL_BACK, "KEEP v1: v2 is worse")],
)
async def test_a_verdict_ends_the_test(
    recorder: Recorder, rates: tuple[float, float], ruling: Ruling, words: str
) -> None:
    world = World(recorder, PLAN)
    world.ended(120, stable=rates[0], candidate=rates[1])
    found = await judged(world)
    assert (found.ruling, found.version) == (ruling, "v2") and words in found.reason
    assert world.rows("SELECT count(DISTINCT look) FROM verdicts") == [(1,)]


async def test_the_budget_ends_the_test_with_the_stable_version(recorder: Recorder) -> None:
    world = World(recorder, PLAN)
    world.ended(205, stable=0.5, candidate=0.55)
    found = await judged(world)
    assert found.ruling is Ruling.ROLL_BACK and "INCONCLUSIVE" in found.reason
    assert world.rows("SELECT arg_max(rule, look) FROM verdicts") == [("interval-includes-zero",)]


async def test_the_winner_of_several_is_named(recorder: Recorder) -> None:
    world = World(recorder, FAMILY)
    world.ended(205, stable=0.5, candidate=0.52, candidate2=0.95)
    found = await judged(world)
    assert (found.ruling, found.version) == (Ruling.ADVANCE, "v3")


async def test_a_plan_for_one_look_is_applied_when_all_units_came(recorder: Recorder) -> None:
    world = World(recorder, replace(PLAN, evaluation="fixed", look_every=None))
    world.ended(150, stable=0.2, candidate=0.9)
    assert (await judged(world)).ruling is Ruling.HOLD
    world.ended(50, stable=0.2, candidate=0.9)
    assert (await judged(world)).ruling is Ruling.ADVANCE


async def test_without_a_plan_there_is_nothing_to_judge_by(recorder: Recorder) -> None:
    world = World(recorder, replace(PLAN, evaluation="fixed", look_every=None, design="paired"))
    with pytest.raises(InvalidInput, match="a plan to judge by"):
        await judged(world)


def test_plans_are_read_back_as_what_they_were(recorder: Recorder) -> None:
    assert plan_of(recorder, "op") is None
    for name, plan in (("pair", PLAN), ("family", FAMILY)):
        recorder.plan(PlanRecord(name, plan.digest(), plan.to_dict(), 1.0)).result(PATIENCE_S)
        assert plan_of(recorder, name) == plan
