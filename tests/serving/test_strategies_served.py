"""Each strategy carried out by the whole serving shell, on scripted instances and a virtual clock."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from abswitch.errors import SwitchRefused
from abswitch.rollout import operation as ops
from abswitch.rollout.judging import Judgement, Ruling, StepEvidence
from abswitch.rollout.operation import Phase
from abswitch.rollout.strategies import strategy_of
from abswitch.serving import judges
from abswitch.serving.scripted import Gate
from tests.patience import PATIENCE_S
from tests.serving.harness import MODEL, Shell, eventually

CANARY: dict[str, Any] = {
    "initial_percentage": 20,
    "step_percentage": 40,
    "evaluation_period_minutes": 10,
    "min_requests": 20,
    "max_duration_hours": 2,
}


async def begun(shell: Shell, kind: str, config: dict[str, Any], **more: Any) -> str:
    await shell.deploy("v1")
    operation_id = await shell.start("v2", kind, config, **more)
    await shell.until(operation_id, Phase.EVALUATING)
    return operation_id


async def traffic(shell: Shell, requests: int = 200) -> list[str]:
    return [await shell.ask() for _ in range(requests)]


async def period(shell: Shell, operation_id: str, minutes: float = 10.0) -> ops.Operation:
    """Let a period pass and the controller settle."""
    epoch = shell.switcher.operation(operation_id).epoch
    shell.clock.advance(minutes * 60)
    await eventually(lambda: shell.switcher.operation(operation_id).epoch > epoch, "a move")
    for _ in range(200):
        await asyncio.sleep(0)
    return shell.switcher.operation(operation_id)


# --- canary -----------------------------------------------------------------------------------------------------------


async def test_a_good_canary_is_promoted_step_by_step(shell: Shell) -> None:
    operation_id = await begun(shell, "canary", CANARY)
    shares = []
    for _ in range(2):
        shares.append(shell.switcher.operation(operation_id).share)
        answers = await traffic(shell, 300)
        assert answers.count("I am v2") / 300 == pytest.approx(shares[-1], abs=0.1)
        await period(shell, operation_id)
    assert shares == pytest.approx([0.2, 0.6])
    await shell.until(operation_id, Phase.SUCCEEDED)
    assert shell.registry.active_version(MODEL) == "v2"
    assert set(await traffic(shell, 20)) == {"I am v2"}


async def test_a_canary_without_traffic_is_held_and_goes_back_at_its_deadline(shell: Shell) -> None:
    operation_id = await begun(shell, "canary", CANARY)
    for _ in range(5):
        operation = await period(shell, operation_id)
        assert operation.phase is Phase.EVALUATING and operation.share == 0.2
        assert "0 of 20 needed observations" in operation.reason
    shell.clock.advance(2 * 3600)
    operation = await shell.until(operation_id, Phase.ROLLED_BACK)
    assert not operation.promoted and "longest duration" in operation.reason
    assert shell.registry.active_version(MODEL) == "v1"


async def test_a_canary_that_fails_requests_is_rolled_back(shell: Shell) -> None:
    operation_id = await begun(shell, "canary", CANARY)
    broken = shell.instance("v2")

    async def generate(request: Any) -> Any:
        raise ValueError("the answer is malformed")
        yield

    broken.generate = generate  # type: ignore[method-assign]  # a failure no script offers
    outcomes = await asyncio.gather(*(shell.ask() for _ in range(200)), return_exceptions=True)
    assert any(isinstance(one, ValueError) for one in outcomes)
    shell.clock.advance(600)
    operation = await shell.until(operation_id, Phase.ROLLED_BACK)
    assert "error_rate of v2 is 1" in operation.reason
    assert set(await traffic(shell, 20)) == {"I am v1"}


async def test_a_quality_guardrail_reads_scores(shell: Shell) -> None:
    guarded = CANARY | {"guardrails": [{"metric": "exact_match", "min": 0.8}]}
    operation_id = await begun(shell, "canary", guarded)
    await traffic(shell, 300)
    for row in shell.requests:
        shell.score(row.request_id, "exact_match", 0.5 if row.served_version == "v2" else 1.0)
    operation = await period(shell, operation_id)
    await shell.until(operation_id, Phase.ROLLED_BACK)
    assert "exact_match of v2 is 0.5" in shell.switcher.operation(operation_id).reason, operation


async def test_a_canary_pauses_and_is_promoted_by_hand(shell: Shell) -> None:
    operation_id = await begun(shell, "canary", CANARY)
    await shell.switcher.tell(operation_id, ops.Pause(reason="lunch"))
    await traffic(shell, 200)
    shell.clock.advance(3600)
    assert shell.switcher.operation(operation_id).phase is Phase.PAUSED, "a paused step is not judged"
    await shell.switcher.tell(operation_id, ops.Resume())
    await shell.switcher.tell(operation_id, ops.Conclude(promote=True, reason="seen enough"))
    assert (await shell.until(operation_id, Phase.SUCCEEDED)).promoted


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("raises", "server is down"),
        ("nonsense", "returns a Judgement"),
        ("without words", "reason: got None; allowed: a text"),
        ("a stranger", "'v9'; allowed: one of this operation's candidates: v2"),
    ],
)
async def test_a_judge_that_fails_never_promotes(shell: Shell, answer: str, words: str) -> None:
    def judge(evidence: StepEvidence) -> Judgement:
        if answer == "raises":
            raise RuntimeError("the metric's server is down")
        if answer == "without words":
            return Judgement(ruling=Ruling.ADVANCE, reason=None)  # type: ignore[arg-type]  # on purpose
        if answer == "a stranger":
            return Judgement(ruling=Ruling.ADVANCE, reason="better", version="v9")
        return True  # type: ignore[return-value]  # on purpose

    operation_id = await begun(shell, "canary", CANARY, judge=judge)
    await traffic(shell, 100)
    shell.clock.advance(600)
    async with asyncio.timeout(PATIENCE_S):
        while not shell.switcher.operation(operation_id).evaluation:
            await asyncio.sleep(0.001)  # the judge runs on a thread of its own
    operation = shell.switcher.operation(operation_id)
    assert operation.phase is Phase.EVALUATING and "the judge failed" in operation.reason
    assert words in operation.reason


async def test_a_judge_that_never_answers_is_asked_once_and_holds_up_nobody(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "JUDGE_TIMEOUT_S", 0.01)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # what everything else of the engine shares
    release, asked = threading.Event(), []

    def judge(evidence: StepEvidence) -> Judgement:
        asked.append(threading.current_thread())
        release.wait(PATIENCE_S)
        return Judgement(ruling=Ruling.ROLL_BACK, reason="at last")

    operation_id = await begun(shell, "canary", CANARY, judge=judge)
    await traffic(shell, 50)
    reasons = []
    for evaluation in (1, 2, 3):
        shell.clock.advance(600)
        async with asyncio.timeout(PATIENCE_S):
            while shell.switcher.operation(operation_id).evaluation < evaluation:
                await asyncio.sleep(0.001)
        reasons.append(shell.switcher.operation(operation_id).reason)
    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.to_thread(lambda: "there is a thread") == "there is a thread"
    assert "it did not answer within 0.01 s" in reasons[0]
    assert "has not answered its last call yet" in reasons[1] and "has not answered its last call yet" in reasons[2]
    (thread,) = asked
    assert thread.daemon, "the interpreter's end does not wait for it"
    release.set()
    thread.join(PATIENCE_S)
    monkeypatch.setattr(judges, "JUDGE_TIMEOUT_S", PATIENCE_S)
    shell.clock.advance(600)
    assert "at last" in (await shell.until(operation_id, Phase.ROLLED_BACK)).reason


async def test_a_judge_is_given_what_each_arm_did(shell: Shell) -> None:
    seen: list[StepEvidence] = []

    def judge(evidence: StepEvidence) -> Judgement:
        seen.append(evidence)
        return Judgement(ruling=Ruling.ROLL_BACK, reason="seen")

    operation_id = await begun(shell, "canary", CANARY, judge=judge)
    await traffic(shell, 200)
    shell.clock.advance(600)
    await shell.until(operation_id, Phase.ROLLED_BACK)
    (evidence,) = seen
    (candidate,) = evidence.candidates
    assert (evidence.stage, evidence.share, evidence.evaluation, evidence.elapsed_s) == (0, 0.2, 1, 600.0)
    assert candidate.requests + evidence.stable.requests == 200
    assert candidate.requests == sum(row.served_version == "v2" for row in shell.requests)
    assert candidate.errors == 0 and candidate.value("latency_p95_s") >= 0.0


async def test_a_caller_who_leaves_says_nothing_about_the_canary(shell: Shell) -> None:
    operation_id = await begun(shell, "canary", CANARY | {"initial_percentage": 100})
    gate = shell.instance("v2").token_gate = Gate()
    left = [asyncio.create_task(shell.ask()) for _ in range(30)]
    await eventually(lambda: gate.waiting == 30)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    operation = await period(shell, operation_id)
    assert operation.phase is Phase.EVALUATING and "0 of 20 needed" in operation.reason


# --- gradual ----------------------------------------------------------------------------------------------------------


async def test_a_ramp_keeps_every_unit_that_is_already_there(shell: Shell) -> None:
    operation_id = await begun(shell, "gradual", {"duration_minutes": 30, "steps": 3})
    units = [f"user-{i}" for i in range(300)]
    on_candidate: set[str] = set()
    for _ in range(3):
        answers = {unit: await shell.ask(unit) for unit in units}
        now = {unit for unit, answer in answers.items() if answer == "I am v2"}
        assert on_candidate <= now
        on_candidate = now
        await period(shell, operation_id)
    assert on_candidate == set(units), "the last step is everything"
    assert (await shell.until(operation_id, Phase.SUCCEEDED)).promoted


async def test_a_breach_during_a_ramp_rolls_back(shell: Shell) -> None:
    operation_id = await begun(shell, "gradual", {"duration_minutes": 30, "steps": 3})
    shell.switcher.breached(MODEL, "v2", "error_rate 30 % above critical 10 %")
    operation = await shell.until(operation_id, Phase.ROLLED_BACK)
    assert "error_rate 30 %" in operation.reason
    assert set(await traffic(shell, 20)) == {"I am v1"}


# --- several arms -----------------------------------------------------------------------------------------------------


async def test_several_arms_split_the_traffic_and_one_wins(shell: Shell) -> None:
    operation_id = await begun(shell, "ab_test", {"arms": {"v2": 30, "v3": 30}})
    answers = await traffic(shell, 600)
    for version, share in (("v1", 0.4), ("v2", 0.3), ("v3", 0.3)):
        assert answers.count(f"I am {version}") / 600 == pytest.approx(share, abs=0.08)
    assert {row.arm for row in shell.requests[-600:]} == {"stable", "candidate", "candidate-2"}
    await shell.switcher.tell(operation_id, ops.Conclude(promote=True, reason="better", version="v3"))
    operation = await shell.until(operation_id, Phase.SUCCEEDED)
    assert operation.winner == "v3" and shell.registry.active_version(MODEL) == "v3"
    assert set(await traffic(shell, 20)) == {"I am v3"}


async def test_a_judge_stops_a_test_at_its_verdict(shell: Shell) -> None:
    def judge(evidence: StepEvidence) -> Judgement:
        done = evidence.evaluation == 2
        return Judgement(ruling=Ruling.ADVANCE if done else Ruling.HOLD, reason="a verdict", version="v3")

    config = {"arms": {"v2": 30, "v3": 30}, "evaluation_period_minutes": 10, "test_duration_hours": 1}
    operation_id = await begun(shell, "ab_test", config, judge=judge)
    shell.clock.advance(600)
    async with asyncio.timeout(PATIENCE_S):
        while shell.switcher.operation(operation_id).evaluation < 1:
            await asyncio.sleep(0.001)
    shell.clock.advance(600)
    assert (await shell.until(operation_id, Phase.SUCCEEDED)).winner == "v3"


async def test_arms_must_be_registered_and_not_be_the_active_version(shell: Shell) -> None:
    await shell.deploy("v1")
    with pytest.raises(SwitchRefused, match="'v1' is already the active version"):
        await shell.start("v2", "ab_test", {"arms": {"v2": 30, "v1": 30}})
    with pytest.raises(Exception, match="v9"):
        await shell.start("v2", "ab_test", {"arms": {"v2": 30, "v9": 30}})
    assert len(shell.switcher.operations) == 1


# --- shadow -----------------------------------------------------------------------------------------------------------


async def test_users_never_see_the_shadow_and_its_answers_are_kept_and_paired(shell: Shell) -> None:
    operation_id = await begun(shell, "shadow", {"mirror_percentage": 100})
    assert set(await traffic(shell, 50)) == {"I am v1"}
    await eventually(lambda: len(shell.requests) == 100)
    originals = {row.request_id: row for row in shell.requests if row.arm == "stable"}
    copies = [row for row in shell.requests if row.arm == "shadow"]
    assert len(originals) == len(copies) == 50
    for copy in copies:
        assert copy.pair_id is not None
        original = originals[copy.pair_id]
        assert (copy.output, original.output, copy.served_version) == ("I am v2", "I am v1", "v2")
        assert copy.prompt == original.prompt and copy.unit_id == original.unit_id
    await shell.switcher.tell(operation_id, ops.Conclude(promote=True, reason="as good"))
    assert (await shell.until(operation_id, Phase.SUCCEEDED)).promoted


async def test_a_shadow_that_hangs_or_dies_hurts_nobody(shell: Shell) -> None:
    operation_id = await begun(shell, "shadow", {"mirror_percentage": 100, "max_in_flight": 3})
    shell.instance("v2").token_gate = Gate()
    assert set(await traffic(shell, 20)) == {"I am v1"}
    assert shell.dispatcher.copies_left_out == 17, "copies are bounded; what is above the bound is left out and counted"
    shell.instance("v2").die("bus error")
    operation = await shell.until(operation_id, Phase.ROLLED_BACK)
    assert "bus error" in operation.reason
    assert set(await traffic(shell, 5)) == {"I am v1"}


async def test_a_slow_shadow_leaves_the_shadows_of_other_models_their_copies(shell: Shell) -> None:
    config = {"mirror_percentage": 100, "max_in_flight": 3}
    await begun(shell, "shadow", config)
    for version in ("v1", "v2"):
        shell.registry.register_model({"model_id": "other", "model": "script", "backend": "scripted"}, version)
    for version, kind, phase in (("v1", "immediate", Phase.SUCCEEDED), ("v2", "shadow", Phase.EVALUATING)):
        strategy = strategy_of(kind, config if kind == "shadow" else None)
        await shell.switcher.start("other", version, strategy, operation_id=f"other-{kind}", salt="s")
        await shell.until(f"other-{kind}", phase)
    shell.instance("v2").token_gate = Gate()
    await traffic(shell, 5)
    for _ in range(3):
        submission = shell.submission()
        submission.model_id = "other"
        await shell.dispatcher.complete(submission)
    await eventually(lambda: sum(row.model_id == "other" and row.arm == "shadow" for row in shell.requests) == 3)
    assert shell.dispatcher.copies_left_out == 2, "of the slow shadow"


async def test_a_request_that_fails_as_it_is_admitted_holds_its_version_no_longer(shell: Shell) -> None:
    await begun(shell, "shadow", {"mirror_percentage": 50})
    submission = shell.submission()
    submission.request_id = "\ud800"  # cannot be hashed, so nobody can say whether it is copied
    with pytest.raises(UnicodeEncodeError):
        await shell.dispatcher.complete(submission)
    assert not shell.transitions.in_flight()
    assert shell.requests[-1].error_type == "UnicodeEncodeError"


async def test_a_share_of_requests_is_copied(shell: Shell) -> None:
    await begun(shell, "shadow", {"mirror_percentage": 20, "keep_outputs": False})
    await traffic(shell, 500)
    await eventually(lambda: not shell.transitions.in_flight())
    copies = sum(row.arm == "shadow" for row in shell.requests)
    assert copies / 500 == pytest.approx(0.2, abs=0.07)


# --- when two do not fit ----------------------------------------------------------------------------------------------


async def test_drain_then_load_queues_requests_and_loses_none(shell: Shell) -> None:
    await shell.deploy("v1")
    old = shell.instance("v1")
    gate = old.token_gate = Gate()
    begun_before = asyncio.create_task(shell.ask())
    await eventually(lambda: gate.waiting == 1)
    operation_id = await shell.start("v2", "immediate", {"drain_first": True})
    meanwhile = [asyncio.create_task(shell.ask()) for _ in range(10)]
    await eventually(lambda: shell.queue.waiting(MODEL) == 10)
    assert (MODEL, "v2") not in shell.cache.loaded, "there is no room yet"
    gate.open()
    assert await begun_before == "I am v1", "what the old version began, it finishes"
    assert set(await asyncio.gather(*meanwhile)) == {"I am v2"}
    assert (await shell.until(operation_id, Phase.SUCCEEDED)).promoted
    assert old.counts.stops == 1 and (MODEL, "v1") not in shell.cache.loaded
    assert {row.tier for row in shell.requests[-10:]} == {"cold"}, "they waited for a load"


async def test_drain_then_load_that_fails_brings_the_old_version_back(shell: Shell) -> None:
    await shell.deploy("v1")
    shell.backend._configure = lambda made: setattr(
        made, "load_error", "out of memory" if made.version.version == "v2" else None
    )
    operation_id = await shell.start("v2", "immediate", {"drain_first": True})
    waiting = asyncio.create_task(shell.ask())
    operation = await shell.until(operation_id, Phase.FAILED)
    assert "out of memory" in operation.reason
    assert await waiting == "I am v1" and shell.registry.active_version(MODEL) == "v1"


# --- switchback -------------------------------------------------------------------------------------------------------


async def test_a_switchback_sends_everybody_to_one_version_at_a_time(shell: Shell) -> None:
    operation_id = await begun(shell, "switchback", {"block_minutes": 10, "blocks": 4})
    order = []
    for block in range(4):
        answers = set(await traffic(shell, 20))
        assert len(answers) == 1, "one version serves a block"
        order.append("candidate" if answers == {"I am v2"} else "baseline")
        rows = [row for row in shell.requests if row.operation_id == operation_id and row.step == block]
        assert len(rows) == 20, "a block of the stable version alone belongs to the switchback, too"
        await period(shell, operation_id)
    strategy = shell.switcher.operation(operation_id).strategy
    assert tuple(order) == strategy.order  # type: ignore[union-attr]  # a switchback's
    operation = await shell.until(operation_id, Phase.SUCCEEDED)
    assert not operation.promoted and "time is over" in operation.reason
    await shell.ask()
    assert shell.requests[-1].operation_id is None, "what comes afterwards is no part of it"


async def test_a_switchbacks_candidate_that_dies_ends_it(shell: Shell) -> None:
    operation_id = await begun(shell, "switchback", {"block_minutes": 10, "blocks": 4})
    shell.instance("v2").die("out of memory")
    await asyncio.gather(*(shell.ask() for _ in range(3)), return_exceptions=True)
    shell.switcher.instance_lost(MODEL, shell.instance("v2"), "out of memory")
    await shell.until(operation_id, Phase.ROLLED_BACK)
    assert set(await traffic(shell, 20)) == {"I am v1"}


# --- bandit -----------------------------------------------------------------------------------------------------------

BANDIT: dict[str, Any] = {"reward": "thumbs", "batch_minutes": 10, "floor_percentage": 10, "min_rewards": 20}


async def batch(shell: Shell, operation_id: str) -> ops.Operation:
    """Let a batch end and the next begin; the judge works on a thread of its own."""
    judged = shell.switcher.operation(operation_id).evaluation
    shell.clock.advance(600)
    async with asyncio.timeout(PATIENCE_S):
        return await shell.switcher.wait(operation_id, lambda o: o.evaluation > judged and o.phase is Phase.EVALUATING)


async def rewarded(shell: Shell, requests: int, **rewards: float) -> None:
    """Requests of new units, each rewarded as its version deserves: every so many-th."""
    begun_at = len(shell.requests)
    await traffic(shell, requests)
    for i, row in enumerate(shell.requests[begun_at:]):
        shell.score(row.request_id, "thumbs", float(i % 10 < 10 * rewards[row.served_version or ""]))


async def test_a_bandits_traffic_follows_what_does_better_and_keeps_a_floor(shell: Shell) -> None:
    operation_id = await begun(shell, "bandit", BANDIT)
    shares = [shell.switcher.operation(operation_id).share]
    for _ in range(4):
        await rewarded(shell, 200, v1=0.3, v2=0.8)
        shares.append((await batch(shell, operation_id)).share)
    assert shares[0] == 0.5
    assert shares[-1] == pytest.approx(0.9, abs=0.01), "all but the floor"
    answers = await traffic(shell, 400)
    assert answers.count("I am v2") / 400 == pytest.approx(0.9, abs=0.06)
    chances = {(row.route_epoch, row.arm): row.propensity for row in shell.requests if row.operation_id}
    for (epoch, arm), chance in chances.items():
        share = next(r.share for r in shell.routes if r.epoch == epoch and r.arm == arm)
        assert chance == share, "the chance that is logged is the one that was used"
    operation = shell.switcher.operation(operation_id)
    assert not operation.promoted and operation.stage == 0 and "thumbs" in operation.reason


async def test_a_bandit_draws_units_anew_with_each_batch(shell: Shell) -> None:
    operation_id = await begun(shell, "bandit", BANDIT | {"min_rewards": 5})
    users = [f"user-{i}" for i in range(100)]
    first = [await shell.ask(user) for user in users]
    for i, row in enumerate(shell.requests[-100:]):
        shell.score(row.request_id, "thumbs", float(i % 2))
    await batch(shell, operation_id)
    second = [await shell.ask(user) for user in users]
    moved = sum(a != b for a, b in zip(first, second, strict=True))
    assert 20 < moved < 80, "not by a threshold on one hash: those would hardly move"
    assert [await shell.ask(user) for user in users] == second, "within a batch everybody stays"


async def test_a_bandit_without_rewards_leaves_its_shares(shell: Shell) -> None:
    operation_id = await begun(shell, "bandit", BANDIT | {"max_duration_hours": 1})
    await traffic(shell, 100)
    operation = await batch(shell, operation_id)
    assert operation.share == 0.5 and "0 of 20 needed rewards" in operation.reason
    await rewarded(shell, 100, v1=0.5, v2=0.5)
    for row in shell.requests[-100:]:
        shell.score(row.request_id, "thumbs", 0.25)
    operation = await batch(shell, operation_id)
    assert operation.share == 0.5 and "not made of 0 and 1" in operation.reason
    shell.clock.advance(3600)
    assert not (await shell.until(operation_id, Phase.SUCCEEDED)).promoted


async def test_a_bandit_of_errors_sends_traffic_away_from_them(shell: Shell) -> None:
    operation_id = await begun(shell, "bandit", {"batch_minutes": 10})
    broken = shell.instance("v2")

    async def generate(request: Any) -> Any:
        raise ValueError("the answer is malformed")
        yield

    broken.generate = generate  # type: ignore[method-assign]  # a failure no script offers
    await asyncio.gather(*(shell.ask() for _ in range(100)), return_exceptions=True)
    operation = await batch(shell, operation_id)
    assert operation.share == pytest.approx(0.05, abs=0.001)


async def test_a_judge_may_set_shares_within_bounds_alone(shell: Shell) -> None:
    with pytest.raises(ValueError, match="share"):
        Judgement(ruling=Ruling.HOLD, reason="x", share=1.5)
