"""The difference of two rates by bets on the split: exact coverage under peeking, symmetry, and bad input."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abswitch.errors import InvalidInput
from abswitch.stats import RateSummary, beta_binomial_difference
from abswitch.stats.rate_betting import _log_capital, betting_rate_difference

arms = st.integers(1, 500).flatmap(lambda n: st.builds(RateSummary, st.just(n), st.integers(0, n)))


@given(arms, arms, st.floats(0.02, 0.98))
def test_swapping_the_arms_turns_the_interval(a: RateSummary, b: RateSummary, share: float) -> None:
    there = betting_rate_difference(a, b, share=share)
    back = betting_rate_difference(b, a, share=1 - share)
    assert math.isclose(there.low, -back.high, abs_tol=1e-6) and math.isclose(there.high, -back.low, abs_tol=1e-6)
    assert -1 <= there.low <= there.estimate <= there.high <= 1
    assert there.excludes_zero() <= (there.p_value <= 0.05)


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize(("p", "q"), [(0.0, 0.0), (0.3, 0.3), (0.01, 0.2), (0.9, 0.1)])
def test_capital_is_fair_at_the_true_difference(share: float, p: float, q: float) -> None:
    """Over every outcome of six units, its mean is 1: no gambler gains from a true difference, on average."""
    mean, n = 0.0, 6
    for m, x, y in product(range(n + 1), repeat=3):
        if x <= n - m and y <= m:
            chance = math.comb(n, m) * share**m * (1 - share) ** (n - m)
            chance *= math.comb(n - m, x) * p**x * (1 - p) ** (n - m - x) * math.comb(m, y) * q**y * (1 - q) ** (m - y)
            mean += chance * math.exp(_log_capital(RateSummary(n - m, x), RateSummary(m, y), share, q - p))
    assert mean == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(
    ("share", "p", "q"), [(0.5, 0.01, 0.01), (0.05, 0.01, 0.01), (0.3, 0.02, 0.08), (0.5, 0.0, 0.3)]
)
def test_intervals_hold_at_all_looks_together(share: float, p: float, q: float) -> None:
    rng, missed, streams, alpha = np.random.default_rng(3), 0, 60, 0.2
    for _ in range(streams):
        arm = rng.random(1500) < share
        event = rng.random(1500) < np.where(arm, q, p)
        for end in range(50, 1501, 50):
            a, b = (RateSummary(int(side[:end].sum()), int((side & event)[:end].sum())) for side in (~arm, arm))
            most = max(_log_capital(a, b, share, q - p), _log_capital(b, a, 1 - share, p - q))
            if most > math.log(2 / alpha):
                found = betting_rate_difference(a, b, share=share, alpha=alpha)
                missed += not found.low <= q - p <= found.high
                break
    assert missed <= streams * alpha + 2 * math.sqrt(streams * alpha * (1 - alpha))


def test_rare_events_are_told_more_narrowly_than_without_the_split() -> None:
    for a, b, share in (
        (RateSummary(500, 5), RateSummary(500, 5), 0.5),
        (RateSummary(300, 0), RateSummary(300, 0), 0.5),
        (RateSummary(9500, 95), RateSummary(500, 15), 0.05),
    ):
        bet, exact = betting_rate_difference(a, b, share=share), beta_binomial_difference(a, b)
        assert bet.high - bet.low < 0.8 * (exact.high - exact.low)


def test_an_empty_arm_has_no_result() -> None:
    found = betting_rate_difference(RateSummary(0, 0), RateSummary(9, 1), share=0.5)
    assert not found.attainable and "each arm needs one" in str(found.why_not)


@pytest.mark.parametrize("bad", [{"share": 0.0}, {"share": 1.0}, {"share": math.nan}, {"alpha": 0.0}, {"alpha": 0.7}])
def test_bad_arguments_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        betting_rate_difference(RateSummary(9, 1), RateSummary(9, 1), **{"share": 0.5} | bad)
