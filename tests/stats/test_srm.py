"""Sample-ratio mismatch against SciPy, and its error rate."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from abswitch.errors import InvalidInput
from abswitch.stats import sample_ratio_mismatch


@pytest.mark.parametrize(("a", "b", "share"), [(520, 480, 0.5), (600, 400, 0.5), (9000, 1100, 0.1), (5, 995, 0.99)])
def test_large_samples_by_chi_square(a: int, b: int, share: float) -> None:
    found = sample_ratio_mismatch(a, b, expected_share=share)
    want = stats.chisquare([a, b], [(a + b) * (1 - share), (a + b) * share])
    assert found.method == "chi-square" and math.isclose(found.p_value, float(want.pvalue), rel_tol=1e-9)


@pytest.mark.parametrize(("a", "b", "share"), [(50, 48, 0.5), (0, 20, 0.5), (90, 5, 0.05), (1, 0, 0.5)])
def test_small_samples_exactly(a: int, b: int, share: float) -> None:
    found = sample_ratio_mismatch(a, b, expected_share=share)
    assert found.method == "exact binomial"
    assert math.isclose(found.p_value, float(stats.binomtest(b, a + b, share).pvalue), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "share", "mismatch"),
    [
        (300, 300, 0.5, False),
        (300, 200, 0.5, True),
        (5300, 4700, 0.5, True),
        (40, 0, 0.5, True),
        (0, 40, 1.0, False),
        (1, 40, 1.0, True),
    ],
)
def test_a_mismatch_is_told(a: int, b: int, share: float, mismatch: bool) -> None:
    assert sample_ratio_mismatch(a, b, expected_share=share).mismatch is mismatch


def test_no_units_are_no_mismatch_and_have_no_share() -> None:
    found = sample_ratio_mismatch(0, 0, expected_share=0.5)
    assert not found.mismatch and math.isnan(found.observed_share)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["observed_share"] is None


def test_sound_splits_are_rarely_called_off() -> None:
    rng = np.random.default_rng(1)
    for n, share in ((600, 0.5), (5000, 0.05)):
        counts = rng.binomial(n, share, 2000)
        wrong = sum(sample_ratio_mismatch(n - int(c), int(c), expected_share=share).mismatch for c in counts)
        assert wrong <= 8  # 2 expected at alpha = 0.001


@pytest.mark.parametrize(
    "bad",
    [
        {"baseline": -1},
        {"baseline": 1.5},
        {"candidate": True},
        {"expected_share": 0.0},
        {"expected_share": 1.1},
        {"expected_share": math.nan},
        {"alpha": 0.0},
        {"alpha": 1.0},
    ],
)
def test_bad_input_is_refused(bad: dict[str, float]) -> None:
    given = {"baseline": 5, "candidate": 5, "expected_share": 0.5} | bad
    with pytest.raises(InvalidInput):
        sample_ratio_mismatch(**given)  # type: ignore[arg-type]  # wrong types are the point
