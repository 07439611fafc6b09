"""`BanditJudge`: the shares of a bandit's next batch, from everything it saw so far. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abswitch.rollout.judging import ArmMeasures, Judgement, Ruling, StepEvidence

if TYPE_CHECKING:
    from abswitch.stats.summaries import RateSummary

_WHOLE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class BanditJudge:
    """Thompson sampling with a floor: a version's share becomes its chance to be the better one.

    It holds always: a bandit neither promotes nor rolls back. Shares stay as they are while a version has too few
    rewards, or where rewards are anything but 0 and 1.

    Args:
        reward: a scorer's name, or `error_rate`.
        direction: `increase` or `decrease`, whichever is better.
        floor: least share of a version, fraction 0–0.5.
        min_rewards: of a version, below which shares stay.
    """

    reward: str
    direction: str
    floor: float
    min_rewards: int

    def __call__(self, evidence: StepEvidence) -> Judgement:
        from abswitch.stats.bandits import ThompsonSampling

        candidate = evidence.candidates[0]
        for arm in (evidence.stable, candidate):
            if arm.count(self.reward) < self.min_rewards:
                found = f"{arm.count(self.reward)} of {self.min_rewards} needed rewards"
                return Judgement(ruling=Ruling.HOLD, reason=f"{self.reward} of {arm.version}: {found}")
        arms = {arm.version: _rewards(arm, self.reward) for arm in (evidence.stable, candidate)}
        known = {version: one for version, one in arms.items() if one is not None}
        if len(known) < len(arms):
            names = ", ".join(arms.keys() - known.keys())
            return Judgement(ruling=Ruling.HOLD, reason=f"{self.reward} of {names} is not made of 0 and 1")
        shares = ThompsonSampling(floor=self.floor, direction=self.direction).shares(known)
        share = shares[candidate.version]
        words = ", ".join(f"{version} {one.successes} of {one.n}" for version, one in known.items())
        return Judgement(ruling=Ruling.HOLD, reason=f"{self.reward}: {words}; {share:.1%} next", share=share)


def _rewards(arm: ArmMeasures, reward: str) -> RateSummary | None:
    """The arm's rewards as counts; None where its mean belongs to no zeros and ones."""
    from abswitch.stats.summaries import RateSummary

    n, value = arm.count(reward), arm.value(reward)
    total = n * value
    if not math.isfinite(total) or abs(total - round(total)) > _WHOLE * max(1, n) or not 0 <= round(total) <= n:
        return None
    return RateSummary(n, round(total))
