from __future__ import annotations

from functools import lru_cache
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binom, kstest

from abswitch.rollout.assignment import salted, unit_fraction
from abswitch.rollout.strategies import CanaryStrategy, GradualStrategy

NAMES = ("exp-1", "exp-2", "exp-10", "exp_1", "Exp-1", "1-exp")
UNITS = [f"user-{i}" for i in range(100_000)]


@lru_cache(maxsize=16)
def fractions(salt: str) -> npt.NDArray[np.float64]:
    state = salted(salt)
    return np.array([unit_fraction(state, unit) for unit in UNITS])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.3, 0.5])
def test_the_share_is_binomial(share: float) -> None:
    on_candidate = int((fractions("exp-1") < share).sum())
    assert binom.ppf(5e-7, len(UNITS), share) <= on_candidate <= binom.ppf(1 - 5e-7, len(UNITS), share)


def test_fractions_are_uniform() -> None:
    assert kstest(fractions("exp-1"), "uniform").pvalue > 1e-6


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize(("one", "other"), list(combinations(NAMES, 2)))
def test_similar_salts_give_unrelated_assignments(one: str, other: str, share: float) -> None:
    phi = np.corrcoef(fractions(one) < share, fractions(other) < share)[0, 1]
    assert abs(phi) < 0.02


def test_a_higher_share_keeps_every_unit_already_there() -> None:
    where = fractions("ramp")
    shares = [stage.share for stage in (*CanaryStrategy().stages, *GradualStrategy().stages)]
    for lower, higher in pairwise(sorted(shares)):
        assert not ((where < lower) & ~(where < higher)).any()


def test_golden_vectors() -> None:
    """The same in every process, on every machine and Python version; a change here breaks running experiments."""
    state = salted("golden")
    assert [round(unit_fraction(state, unit), 12) for unit in ("", "a", "user-1", "Ünïcode")] == GOLDEN


GOLDEN = [0.553652633879, 0.057602368735, 0.205074491525, 0.223962166794]
