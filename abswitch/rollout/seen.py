"""`SeenArm`: what one arm showed in a stage so far, filled by whole batches; and how an arm's counts, ordered durations
and moments become what judges are given. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from abswitch.rollout.judging import ArmMeasures
from abswitch.rollout.measured import QUANTILES
from abswitch.stats.summaries import MeanSummary

Floats = NDArray[np.float64]


class Moments(Protocol):
    """Of a stream of numbers."""

    @property
    def n(self) -> int: ...
    @property
    def mean(self) -> float: ...
    @property
    def variance(self) -> float: ...


def measures_of(
    version: str,
    *,
    requests: int,
    errors: int,
    first_errors: int | None,
    durations: Mapping[str, Floats],
    scores: Mapping[str, Moments],
    fractions: Mapping[str, bool],
    seen: Mapping[str, int] | None = None,
) -> ArmMeasures:
    """One arm as a judge is given it.

    Args:
        durations: by `DURATIONS`' keys, in seconds, ascending; none of them empty.
        scores, fractions: by scorer; whether all values were from 0 to 1.
        seen: how many durations there were, where those given are a sample of them.
    """
    values = {name: one.mean for name, one in scores.items()}
    counts = {name: one.n for name, one in scores.items()}
    samples: dict[str, tuple[float, Floats]] = {}
    for name, (duration, q) in QUANTILES.items():
        if duration in durations:
            ordered = durations[duration]
            samples[name] = (q, ordered)
            values[name] = _quantile(ordered, q)
            counts[name] = ordered.size if seen is None else seen[duration]
    return ArmMeasures(
        version=version,
        requests=requests,
        errors=errors,
        values=values,
        counts=counts,
        errors_of_new_units=first_errors,
        variances={name: one.variance for name, one in scores.items()},
        is_fraction=dict(fractions),
        samples=samples,
    )


@dataclass(slots=True)
class SeenArm:
    """Counts, sorted durations and moments of scores."""

    requests: int = 0
    errors: int = 0
    first_errors: int | None = None
    durations: dict[str, Floats] = field(default_factory=dict)
    scores: dict[str, MeanSummary] = field(default_factory=dict)
    fractions: dict[str, bool] = field(default_factory=dict)

    def add(
        self,
        requests: int,
        errors: int,
        durations: Mapping[str, Floats],
        scores: Mapping[str, Floats] | None = None,
        *,
        first_errors: int | None = None,
    ) -> None:
        """More of the same stage.

        Args:
            durations: by `DURATIONS`' keys, in seconds; of answered requests.
            scores: by scorer; of scored answers.
            first_errors: of `errors`, those that were the first of their unit in this switch; all where not told.
        """
        self.requests, self.errors = self.requests + requests, self.errors + errors
        if first_errors is not None:
            self.first_errors = (self.first_errors or 0) + first_errors
        for name, values in durations.items():
            both = np.concatenate((self.durations.get(name, np.empty(0)), np.sort(values)))
            both.sort(kind="stable")  # merges the two runs
            self.durations[name] = both
        for name, values in (scores or {}).items():
            self.scores[name] = self.scores.get(name, MeanSummary.of([])) + MeanSummary.of(values)
            within = bool(((values >= 0.0) & (values <= 1.0)).all())
            self.fractions[name] = self.fractions.get(name, True) and within

    def measures(self, version: str) -> ArmMeasures:
        """As a judge is given it."""
        if not self.requests:
            return ArmMeasures(version=version)
        return measures_of(
            version,
            requests=self.requests,
            errors=self.errors,
            first_errors=self.first_errors,
            durations={name: ordered for name, ordered in self.durations.items() if ordered.size},
            scores={name: one for name, one in self.scores.items() if one.n},
            fractions=self.fractions,
        )


def _quantile(ordered: Floats, q: float) -> float:
    """Of sorted values, by linear interpolation, NumPy's default."""
    place = q * (ordered.size - 1)
    low = math.floor(place)
    high = min(low + 1, ordered.size - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (place - low))
