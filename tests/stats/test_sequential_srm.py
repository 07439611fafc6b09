"""The sequential check of the split: against its formula, peeked at every unit, and over ramps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from abswitch.errors import InvalidInput
from abswitch.stats.sequential_srm import StageCounts, dirichlet_log_e, sequential_sample_ratio


@given(st.lists(st.integers(0, 60), min_size=2, max_size=4), st.floats(5, 500))
def test_it_is_the_dirichlet_multinomial_over_the_multinomial(counts: list[int], concentration: float) -> None:
    shares = np.arange(1.0, len(counts) + 1)
    shares /= shares.sum()
    n = sum(counts)
    mixed = stats.dirichlet_multinomial.logpmf(counts, concentration * shares, np.array(n))
    want = mixed - stats.multinomial.logpmf(counts, n, shares)
    assert math.isclose(float(dirichlet_log_e(counts, shares, concentration=concentration)), float(want), abs_tol=1e-6)


def test_sound_splits_peeked_at_every_unit() -> None:
    rng = np.random.default_rng(1)
    candidate = np.cumsum(rng.random((2000, 2000)) < 0.05, axis=1)
    units = np.arange(1, 2001)
    log_e = dirichlet_log_e(np.stack([units - candidate, candidate], axis=-1), [0.95, 0.05])
    assert (log_e >= math.log(1000)).any(axis=1).mean() <= 0.002
    assert (log_e >= math.log(20)).any(axis=1).mean() <= 0.05


def test_a_mismatch_is_told_soon() -> None:
    assert sequential_sample_ratio([(2850, 2150, 0.5)]).mismatch
    assert not sequential_sample_ratio([(2560, 2440, 0.5)]).mismatch
    found = sequential_sample_ratio([(900, 100, 0.05)])
    assert found.mismatch and found.p_value < 1e-4 and found.observed_share == 0.1


def test_a_ramp_is_checked_stage_by_stage() -> None:
    sound = sequential_sample_ratio([(9500, 500, 0.05), (7500, 2500, 0.25), StageCounts(5000, 5000, 0.5)])
    assert not sound.mismatch and math.isclose(sound.expected_share, 8000 / 30000)
    assert sound.baseline == 22000 and sound.candidate == 8000
    # The same units in all, but at the wrong stages.
    assert sequential_sample_ratio([(9000, 1000, 0.05), (8000, 2000, 0.25), (5000, 5000, 0.5)]).mismatch


def test_an_arm_without_traffic_must_stay_empty() -> None:
    assert not sequential_sample_ratio([(100, 0, 0.0), (0, 50, 1.0)]).mismatch
    for stage in ((100, 1, 0.0), (1, 50, 1.0)):
        found = sequential_sample_ratio([stage])
        assert found.mismatch and found.p_value == 0.0


def test_no_units_are_no_mismatch() -> None:
    found = sequential_sample_ratio([(0, 0, 0.25)])
    assert not found.mismatch and found.p_value == 1.0 and found.expected_share == 0.25
    assert math.isnan(found.observed_share)


BAD: list[Any] = [
    lambda: sequential_sample_ratio([]),
    lambda: sequential_sample_ratio([(1, 2)]),  # type: ignore[list-item]  # wrong shapes are the point
    lambda: sequential_sample_ratio([(-1, 2, 0.5)]),
    lambda: sequential_sample_ratio([(1, 2, 1.5)]),
    lambda: sequential_sample_ratio([(1, 2, 0.5)], alpha=0.0),
    lambda: dirichlet_log_e([1, 2], [0.5, 0.6]),
    lambda: dirichlet_log_e([1, 2], [0.0, 1.0]),
    lambda: dirichlet_log_e([1, 2, 3], [0.5, 0.5]),
    lambda: dirichlet_log_e([1, -2], [0.5, 0.5]),
    lambda: dirichlet_log_e([1, 2], [0.5, 0.5], concentration=0.0),
]


@pytest.mark.parametrize("call", BAD)
def test_bad_input_is_refused(call: Any) -> None:
    with pytest.raises(InvalidInput):
        call()
