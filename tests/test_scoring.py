from __future__ import annotations

from typing import Any

import pytest

from abswitch.errors import InvalidInput
from abswitch.scoring import ExactMatch, Function, Judge, Matches, Sample, is_async, scorer_of, scorers_of


def sample(output: str, reference: str | None = "Paris") -> Sample:
    return Sample(request_id="r", prompt="p", output=output, reference=reference)


def test_exact_match_ignores_white_space_around_and_case_only_if_asked() -> None:
    assert ExactMatch().score(sample(" Paris\n")) == 1.0
    assert ExactMatch().score(sample("paris")) == 0.0
    assert ExactMatch(ignore_case=True).score(sample("PARIS")) == 1.0
    assert ExactMatch().score(sample("Paris", None)) is None


def test_a_pattern_is_searched_or_matched_in_full() -> None:
    assert Matches(r"\d+").score(sample("about 40")) == 1.0
    assert Matches(r"\d+", full=True).score(sample("about 40")) == 0.0


async def later(_: Sample) -> float:
    return 1.0


class Later:
    async def __call__(self, _: Sample) -> float:
        return 1.0


def test_a_callable_becomes_a_scorer_under_its_own_name() -> None:
    scorer = scorer_of(later)
    assert (scorer.name, is_async(scorer)) == ("later", True)
    assert is_async(Function(Later(), "later"))
    assert not is_async(Function(len, "n"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Matches("["), "scorer.pattern"),
        (lambda: ExactMatch(name=""), "scorer.name"),
        (lambda: Judge(later, template="no slot"), "scorer.template"),  # type: ignore[arg-type]
        (lambda: Judge(later, low=1, high=0), "scorer.high"),  # type: ignore[arg-type]
        (lambda: scorer_of(3), "scorers"),  # type: ignore[arg-type]
        (lambda: scorers_of([ExactMatch(), ExactMatch()]), "scorers"),
    ],
)
def test_a_malformed_scorer_is_named(make: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make()
    assert caught.value.field == field
