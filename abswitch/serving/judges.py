"""Asking a judge: the default of each strategy, and a judge of the user's beside the requests, never in their way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

from abswitch.errors import InvalidInput
from abswitch.rollout.bandit import BanditJudge
from abswitch.rollout.judging import Judge, Judgement, StepEvidence, ThresholdJudge
from abswitch.rollout.operation import Operation
from abswitch.rollout.sequential_judge import SequentialJudge
from abswitch.rollout.strategies import SEQUENTIAL, BanditStrategy, CanaryStrategy, Strategy
from abswitch.serving.tally import StepTally
from abswitch.serving.threads import begin_on_thread

JUDGE_TIMEOUT_S = 60.0


def default_judge(strategy: Strategy) -> SequentialJudge | ThresholdJudge | BanditJudge | None:
    """The judge of a strategy that was given none; None where the strategy needs one of the user's."""
    if isinstance(strategy, BanditStrategy):
        return BanditJudge(
            reward=strategy.reward,
            direction=strategy.direction,
            floor=strategy.floor_percentage / 100.0,
            min_rewards=strategy.min_rewards,
        )
    if not isinstance(strategy, CanaryStrategy):
        return None
    if strategy.evaluation == SEQUENTIAL:
        return SequentialJudge(
            max_error_rate=strategy.max_error_rate_threshold,
            min_requests=strategy.min_requests,
            guardrails=strategy.guardrails,
            stages=len(strategy.stages),
            alpha=strategy.alpha,
        )
    return ThresholdJudge(
        max_error_rate=strategy.max_error_rate_threshold,
        min_requests=strategy.min_requests,
        guardrails=strategy.guardrails,
    )


def check_judge(judge: object, strategy: Strategy) -> None:
    """Refuse a judge that cannot be asked, or that no step of the strategy asks.

    Raises:
        InvalidInput: with what has a judge.
    """
    if not callable(judge):
        raise InvalidInput("judge", judge, "a callable that is given a StepEvidence and returns a Judgement")
    if not any(stage.judged for stage in strategy.stages):
        allowed = (
            f"none, as nothing in this {strategy.type.value} strategy asks it: a canary does at each step, and an "
            f"ab_test every evaluation_period_minutes, where it has them"
        )
        raise InvalidInput("judge", judge, allowed)


def judgement_on(
    tally: StepTally, by_plan: Callable[[Operation], Awaitable[Judgement]] | None = None
) -> Callable[[Operation, Judge | None], Awaitable[Judgement]]:
    """Ask the operation's judge, or its strategy's default one, about the step under way; else judge by its plan.

    A judge of the user's runs on a thread of its own and has `JUDGE_TIMEOUT_S`; whatever it raises, or anything but a
    `Judgement` on one of the candidates as its answer, is an error, which makes the step hold.
    """
    asking = _Asking()

    async def ask(operation: Operation, given: Judge | None) -> Judgement:
        judge = given or default_judge(operation.strategy)
        if judge is None and by_plan is not None:
            async with asyncio.timeout(JUDGE_TIMEOUT_S):
                return await by_plan(operation)
        if judge is None:
            raise InvalidInput("judge", None, "a judge, given to start_switch(judge=…); it is not kept over a restart")
        evidence = tally.evidence(operation)
        if isinstance(judge, SequentialJudge | ThresholdJudge):  # milliseconds, and no surprises
            return judge(evidence)
        judgement = await asking.ask(operation.operation_id, judge, evidence)
        if not isinstance(judgement, Judgement):
            raise InvalidInput("judge", type(judgement).__name__, "a callable that returns a Judgement")
        if judgement.version is not None and judgement.version not in operation.candidates:
            candidates = ", ".join(operation.candidates)
            raise InvalidInput(
                "judgement.version", judgement.version, f"one of this operation's candidates: {candidates}"
            )
        return judgement

    return ask


class _Asking:
    """Calls of users' judges. One that never returns costs its operation the judge, and nobody else anything."""

    def __init__(self) -> None:
        self._out: dict[str, Future[object]] = {}

    async def ask(self, operation_id: str, judge: Judge, evidence: StepEvidence) -> object:
        """What the judge answers.

        Raises:
            TimeoutError: it did not answer in time, or still has not answered an earlier call.
        """
        if operation_id in self._out:
            raise TimeoutError("it has not answered its last call yet, and is asked again once it has")
        answer: Future[object] = begin_on_thread(lambda: judge(evidence), f"abswitch-judge-{operation_id}")
        self._out[operation_id] = answer
        answer.add_done_callback(lambda _: self._out.pop(operation_id))  # on its thread, and in one step
        try:
            async with asyncio.timeout(JUDGE_TIMEOUT_S):
                return await asyncio.wrap_future(answer)
        except TimeoutError as late:
            if answer.done():  # the judge's own error
                raise
            raise TimeoutError(f"it did not answer within {JUDGE_TIMEOUT_S:g} s") from late
