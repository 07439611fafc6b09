"""The error-label e-process: exact, whatever the share does, and found again by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abswitch.errors import InvalidInput
from abswitch.stats.error_process import Claim, ErrorProcess, first_errors

shares = st.sampled_from([0.05, 0.25, 0.5, 0.9])
claims = st.sampled_from([(Claim.HARM, 1.0), (Claim.HARM, 1.5), (Claim.NO_HARM, 2.0), (Claim.DIFFERENCE, 1.0)])


def chance(ratio: float, share: float) -> float:
    return ratio * share / (ratio * share + 1 - share)


@settings(max_examples=25, deadline=None)
@given(claims, st.lists(shares, min_size=4, max_size=4))
def test_its_mean_is_one_when_the_claim_is_just_not_true(claim: tuple[Claim, float], ramp: list[float]) -> None:
    # All sixteen ways in which four errors can fall, weighted by how often they do: exact, not simulated.
    kind, ratio = claim
    mean = 0.0
    for labels in itertools.product((0, 1), repeat=4):
        chances = [
            chance(ratio, share) if one else 1 - chance(ratio, share) for one, share in zip(labels, ramp, strict=True)
        ]
        mean += math.prod(chances) * ErrorProcess(kind, ratio).update_labels(list(labels), ramp).e_value
    assert math.isclose(mean, 1.0, rel_tol=1e-9)


@given(st.floats(0.1, 0.99))
def test_well_within_the_null_its_mean_is_lower(ratio: float) -> None:
    for kind, null, true in ((Claim.HARM, 1.0, ratio), (Claim.NO_HARM, 1.5, 1.5 / ratio)):
        process, p = ErrorProcess(kind, null), chance(true, 0.25)
        one, none = (process.update(baseline=1 - k, candidate=k, share=0.25).e_value for k in (1, 0))
        assert p * one + (1 - p) * none <= 1 + 1e-12


@given(st.integers(0, 30), st.integers(0, 30), shares)
def test_order_and_portions_do_not_matter(baseline: int, candidate: int, share: float) -> None:
    start = ErrorProcess(Claim.DIFFERENCE)
    at_once = start.update(baseline=baseline, candidate=candidate, share=share)
    labels = np.random.default_rng(baseline).permutation([0] * baseline + [1] * candidate)
    one_by_one = start
    for label in labels:
        one_by_one = one_by_one.update_labels([label], [share])
    assert math.isclose(at_once.log_e, one_by_one.log_e, abs_tol=1e-9)
    assert one_by_one.peak >= at_once.log_e - 1e-9 and one_by_one.labels == baseline + candidate


def test_a_new_look_leaves_the_old_state_alone() -> None:
    before = ErrorProcess(Claim.HARM).update(baseline=5, candidate=5, share=0.5)
    kept = (before.e_value, before.labels)
    before.update(baseline=0, candidate=9, share=0.5)
    assert (before.e_value, before.labels) == kept


def test_once_shown_it_stays_shown() -> None:
    alarm = ErrorProcess(Claim.HARM).update(baseline=1, candidate=12, share=0.25)
    later = alarm.update(baseline=60, candidate=20, share=0.25)
    assert alarm.shown and later.shown and later.e_value < 20 and later.p_value == alarm.p_value < 0.05


def test_no_label_says_nothing() -> None:
    for claim in Claim:
        process = ErrorProcess(claim, 1.5 if claim is Claim.NO_HARM else 1.0)
        assert process.e_value == pytest.approx(1.0) and not process.shown and process.p_value == 1.0
        assert math.isnan(process.estimate) and process.interval() == (0.0, math.inf)
        same = process.update(baseline=0, candidate=0, share=0.3)
        assert same.e_value == pytest.approx(1.0) and "nan" in same.in_words()


def test_an_arm_with_all_traffic_gives_no_evidence() -> None:
    process = ErrorProcess(Claim.HARM).update(baseline=0, candidate=50, share=1.0)
    assert process.e_value == pytest.approx(1.0) and process.labels == 50


def test_errors_at_a_small_share_peeked_at_each_one() -> None:
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(200):
        process = ErrorProcess(Claim.HARM)
        for share in (0.05, 0.25, 0.5):  # a ramp: the label's coin changes with it
            for label in rng.random(30) < share:
                process = process.update_labels([label], share)
        wrong += process.shown
    assert wrong / 200 <= 0.05


def test_three_times_the_errors_are_found_soon() -> None:
    rng, found = np.random.default_rng(2), 0
    for _ in range(200):
        k = int(rng.binomial(90, chance(3.0, 0.25)))
        found += ErrorProcess(Claim.HARM).update(baseline=90 - k, candidate=k, share=0.25).shown
    assert found >= 190


def test_equal_versions_are_shown_to_do_no_harm() -> None:
    rng, found, wrong = np.random.default_rng(3), 0, 0
    for _ in range(200):
        for ratio in (1.0, 2.0):
            k = int(rng.binomial(200, chance(ratio, 0.5)))
            shown = ErrorProcess(Claim.NO_HARM, 2.0).update(baseline=200 - k, candidate=k, share=0.5).shown
            found, wrong = (found + shown, wrong) if ratio == 1.0 else (found, wrong + shown)
    assert found >= 190 and wrong <= 10


def test_the_interval_holds_the_ratio() -> None:
    rng, missed = np.random.default_rng(4), 0
    for _ in range(200):
        process = ErrorProcess(Claim.DIFFERENCE)
        ever = False
        for look in range(10):
            share = 0.1 + 0.04 * look
            k = int(rng.binomial(20, chance(2.0, share)))
            process = process.update(baseline=20 - k, candidate=k, share=share)
            low, high = process.interval()
            ever |= not low <= 2.0 <= high
        missed += ever
        assert low < process.estimate < high
    assert missed / 200 <= 0.05


def test_an_interval_that_excludes_one_is_the_two_sided_test() -> None:
    for candidate in range(40):
        process = ErrorProcess(Claim.DIFFERENCE).update(baseline=40 - candidate, candidate=candidate, share=0.4)
        low, high = process.interval()
        assert (low >= 1.0 or high <= 1.0) == (process.e_value >= 20)


@given(st.integers(0, 40), st.integers(0, 40))
def test_swapped_arms_have_the_inverse_ratio(a: int, b: int) -> None:
    one = ErrorProcess(Claim.DIFFERENCE).update(baseline=a, candidate=b, share=0.3)
    other = ErrorProcess(Claim.DIFFERENCE).update(baseline=b, candidate=a, share=0.7)
    assert math.isclose(one.log_e, other.log_e, abs_tol=1e-9)
    low, high = one.interval()
    assert other.interval()[0] == pytest.approx(1 / high if high else math.inf)
    assert low == pytest.approx(1 / other.interval()[1] if other.interval()[1] else math.inf)


def test_a_small_alpha_needs_more() -> None:
    process = ErrorProcess(Claim.HARM).update(baseline=2, candidate=8, share=0.25)
    strict = ErrorProcess(Claim.HARM, alpha=0.001).update(baseline=2, candidate=8, share=0.25)
    assert process.shown and not strict.shown and process.e_value == strict.e_value


def test_each_unit_counts_once() -> None:
    assert first_errors([]) == []
    assert first_errors(["u1", "u2", "u1", "u3", "u2"], {"u3"}) == [True, True, False, False, False]


def test_it_says_what_it_rests_on() -> None:
    words = ErrorProcess(Claim.HARM).update(baseline=10, candidate=30, share=0.5).in_words()
    assert "30 of 40 errors are the candidate's, ratio 3" in words and "α = 0.05" in words and "of the 20" in words


BAD: list[Any] = [
    lambda: ErrorProcess("worse"),  # type: ignore[arg-type]  # wrong values are the point
    lambda: ErrorProcess(Claim.NO_HARM),
    lambda: ErrorProcess(Claim.NO_HARM, 0.9),
    lambda: ErrorProcess(Claim.HARM, 0.0),
    lambda: ErrorProcess(Claim.HARM, alpha=0.0),
    lambda: ErrorProcess(Claim.HARM, spread=0.0),
    lambda: ErrorProcess(Claim.HARM).update(baseline=-1, candidate=0, share=0.5),
    lambda: ErrorProcess(Claim.HARM).update(baseline=0, candidate=0, share=1.5),
    lambda: ErrorProcess(Claim.HARM).update(baseline=0, candidate=1, share=0.0),
    lambda: ErrorProcess(Claim.HARM).update(baseline=1, candidate=0, share=1.0),
    lambda: ErrorProcess(Claim.HARM).update_labels([0, 2], 0.5),
    lambda: ErrorProcess(Claim.HARM).update_labels([0, 1], [0.5]),
    lambda: ErrorProcess(Claim.HARM).update_labels([0, 1], [0.5, math.nan]),
    lambda: ErrorProcess(Claim.HARM).update_labels([0, math.nan], 0.5),
]


@pytest.mark.parametrize("call", BAD)
def test_bad_input_is_refused(call: Any) -> None:
    with pytest.raises(InvalidInput):
        call()


def test_it_is_a_value() -> None:
    one, other = (ErrorProcess(Claim.HARM).update(baseline=1, candidate=2, share=0.5) for _ in range(2))
    assert one == other and hash(one) == hash(other) and replace(one, alpha=0.01) != other
