"""Comparisons held against a margin: not worse than that (non-inferiority), or not different by that (equivalence)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from abswitch import checks
from abswitch.stats.comparison import Comparison, finite


class MarginOutcome(StrEnum):
    """Whether the claim is shown, its opposite is, or neither."""

    SHOWN = "shown"
    REFUTED = "refuted"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginTest:
    """A claim about a margin, decided by the comparison's interval.

    Attributes:
        margin: above 0, in the metric's own unit.
        low, high: the interval of the difference, turned so that up is better (non-inferiority) or as it is.
        alpha: error rate of the claim: half of the comparison's, as one end of its interval decides.
    """

    method: str
    margin: float
    low: float
    high: float
    alpha: float
    outcome: MarginOutcome

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain


def non_inferiority(found: Comparison, *, margin: float, direction: str) -> MarginTest:
    """Whether the candidate is worse than the baseline by less than `margin`.

    Shown when the interval lies above −margin on the scale where up is better; refuted (harm) when it lies below.
    Not attainable comparisons leave it open.

    Args:
        margin: above 0, in the metric's own unit.
        direction: `increase` or `decrease`, whichever is better.

    Raises:
        InvalidInput: margin or direction is not allowed.

    References:
        G. Piaggio et al., JAMA 308 (2012) 2594–2604 (CONSORT, non-inferiority and equivalence trials).

    >>> from abswitch.stats import RateSummary, two_proportion_z_test
    >>> errors = two_proportion_z_test(RateSummary(500, 5), RateSummary(500, 6))
    >>> non_inferiority(errors, margin=0.05, direction="decrease").outcome.value
    'shown'
    """
    checks.number("margin", margin, low=0.0, above=True)
    better = checks.one_of("direction", direction, ("increase", "decrease"))
    low, high = (found.low, found.high) if better == "increase" else (-found.high, -found.low)
    outcome = _outcome(found, shown=low > -margin, refuted=high < -margin)
    return _test("non-inferiority, by the interval", found, margin, (low, high), outcome)


def tost_equivalence(found: Comparison, *, margin: float) -> MarginTest:
    """Whether candidate and baseline differ by less than `margin` either way: two one-sided tests.

    Shown when the interval lies inside (−margin, margin); refuted when it lies outside. The interval is the
    comparison's own, of confidence 1 − alpha, so each one-sided test has alpha / 2: stricter than the customary
    1 − 2·alpha, and the same interval that decides better and worse.

    References:
        D. J. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987) 657–680.
    """
    checks.number("margin", margin, low=0.0, above=True)
    outcome = _outcome(found, shown=found.within(margin), refuted=found.low > margin or found.high < -margin)
    return _test("equivalence, two one-sided tests by the interval", found, margin, (found.low, found.high), outcome)


def _outcome(found: Comparison, *, shown: bool, refuted: bool) -> MarginOutcome:
    if not found.attainable or not (shown or refuted):
        return MarginOutcome.OPEN
    return MarginOutcome.SHOWN if shown else MarginOutcome.REFUTED


def _test(
    method: str, found: Comparison, margin: float, interval: tuple[float, float], outcome: MarginOutcome
) -> MarginTest:
    low, high = interval
    return MarginTest(method=method, margin=margin, low=low, high=high, alpha=found.alpha / 2, outcome=outcome)
