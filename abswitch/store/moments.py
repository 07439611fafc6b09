"""Sufficient statistics of an operation's requests, by arm: one SQL statement, over requests and over units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from abswitch.store.columns import ValueColumns
from abswitch.store.recorder import Recorder

Pair = tuple[str, str]


class Moments(NamedTuple):
    """Of one value: count, how many are 0 and 1, mean, and variance with n − 1.

    The mean of nothing and the variance of one are NaN.
    """

    n: int
    zeros: int
    ones: int
    mean: float
    var: float


class PairMoments(NamedTuple):
    """Of two values where both are there: count, means, variances and covariance, all with n − 1."""

    n: int
    mean_x: float
    mean_y: float
    var_x: float
    var_y: float
    cov: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmMoments:
    """One arm's counts and moments.

    Attributes:
        requests, units: assigned to the arm.
        answered_units: units with an answer of the assigned version; what answer metrics are computed from.
        repeated_units: units with more than one of those.
        answered, errored, cancelled, fallbacks: requests (a fallback may also be errored).
        scorer_failures: by scorer, answers that it raised for.
        values: by name, over requests.
        pairs: by pair of names, over requests.
        unit_values: by name, over units: (sum of the unit's values, count of them).
        unit_pairs: by pair of names, over units: (sum of x, sum of y).
    """

    requests: int
    units: int
    answered_units: int
    repeated_units: int
    answered: int
    errored: int
    cancelled: int
    fallbacks: int
    scorer_failures: Mapping[str, int]
    values: Mapping[str, Moments]
    pairs: Mapping[Pair, PairMoments]
    unit_values: Mapping[str, PairMoments]
    unit_pairs: Mapping[Pair, PairMoments]


def arm_moments(
    recorder: Recorder, operation_id: str, names: Sequence[str], *, pairs: Sequence[Pair] = ()
) -> dict[str, ArmMoments]:
    """Moments of every arm that was assigned a request while both arms were being compared.

    Args:
        names: values, see `abswitch.store.columns`.
        pairs: of names, for ratios.

    Raises:
        InvalidInput: unknown name.
        StoreError: the store cannot be read.
    """
    columns = ValueColumns(recorder, operation_id, [*names, *(name for pair in pairs for name in pair)])
    pairs = tuple(dict.fromkeys(pairs))
    rows = recorder.rows(_sql(columns, pairs), columns.params)
    return {str(arm): _arm(iter(cells), columns, pairs) for arm, *cells in rows}


def crossed_units(recorder: Recorder, operation_id: str) -> int:
    """Units that were assigned to both arms."""
    columns = ValueColumns(recorder, operation_id, ())
    per_unit = "SELECT unit_id FROM value_rows GROUP BY unit_id HAVING count(DISTINCT arm) > 1"
    return int(recorder.rows(f"{columns.with_clause} SELECT count(*) FROM ({per_unit})", columns.params)[0][0])


def _sql(columns: ValueColumns, pairs: Sequence[Pair]) -> str:
    values = [columns.column(name) for name in columns.names]
    couples = [(columns.column(x), columns.column(y)) for x, y in pairs]
    by_request = [*_counts(columns), *(part for x in values for part in _moments(x))]
    by_request += [part for x, y in couples for part in _pair_moments(x, y)]
    sums = [f"sum({x}) AS sum_{x}, count({x})::DOUBLE AS count_{x}" for x in values]
    sums += [
        f"sum({x}) FILTER ({y} IS NOT NULL) AS pair_{i}_x, sum({y}) FILTER ({x} IS NOT NULL) AS pair_{i}_y"
        for i, (x, y) in enumerate(couples)
    ]
    by_unit = ["count(*)", "count(*) FILTER (answers > 0)", "count(*) FILTER (answers > 1)"]
    by_unit += [part for x in values for part in _pair_moments(f"sum_{x}", f"count_{x}")]
    by_unit += [part for i in range(len(couples)) for part in _pair_moments(f"pair_{i}_x", f"pair_{i}_y")]
    return f"""{columns.with_clause}, unit_rows AS (
  SELECT {", ".join(["arm, unit_id, count(*) FILTER (answered) AS answers", *sums])}
  FROM value_rows GROUP BY arm, unit_id
), by_request AS (
  SELECT arm, {_named("r", by_request)} FROM value_rows GROUP BY arm
), by_unit AS (
  SELECT arm, {_named("u", by_unit)} FROM unit_rows GROUP BY arm
)
SELECT * FROM by_request JOIN by_unit USING (arm) ORDER BY arm"""


def _counts(columns: ValueColumns) -> list[str]:
    return [
        "count(*)",
        "count(*) FILTER (answered)",
        "count(*) FILTER (errored)",
        "count(*) FILTER (cancelled)",
        "count(*) FILTER (fallback)",
        *(f"coalesce(sum({columns.failures(scorer)}), 0)::BIGINT" for scorer in columns.scorers),
    ]


def _moments(x: str) -> list[str]:
    # favg: compensated summation
    return [f"count({x})", f"count(*) FILTER ({x} = 0)", f"count(*) FILTER ({x} = 1)", f"favg({x})", f"var_samp({x})"]


def _pair_moments(x: str, y: str) -> list[str]:
    both = f"FILTER ({x} IS NOT NULL AND {y} IS NOT NULL)"
    parts = ["count(*)", f"favg({x})", f"favg({y})", f"var_samp({x})", f"var_samp({y})", f"covar_samp({x}, {y})"]
    return [f"{part} {both}" for part in parts]


def _named(prefix: str, expressions: Sequence[str]) -> str:
    return ",\n    ".join(f"{expression} AS {prefix}{i}" for i, expression in enumerate(expressions))


def _arm(cells: Iterator[float | None], columns: ValueColumns, pairs: Sequence[Pair]) -> ArmMoments:
    """Reads the cells in the order in which `_sql` asks for them."""

    def count() -> int:
        return int(next(cells) or 0)

    def real() -> float:
        cell = next(cells)
        return math.nan if cell is None else float(cell)

    requests, answered, errored, cancelled, fallbacks = (count() for _ in range(5))
    scorer_failures = {scorer: count() for scorer in columns.scorers}
    values = {name: Moments(count(), count(), count(), real(), real()) for name in columns.names}
    over_requests = {pair: _pair(count, real) for pair in pairs}
    units, answered_units, repeated_units = (count() for _ in range(3))
    return ArmMoments(
        requests=requests,
        units=units,
        answered_units=answered_units,
        repeated_units=repeated_units,
        answered=answered,
        errored=errored,
        cancelled=cancelled,
        fallbacks=fallbacks,
        scorer_failures=scorer_failures,
        values=values,
        pairs=over_requests,
        unit_values={name: _pair(count, real) for name in columns.names},
        unit_pairs={pair: _pair(count, real) for pair in pairs},
    )


def _pair(count: Callable[[], int], real: Callable[[], float]) -> PairMoments:
    return PairMoments(count(), real(), real(), real(), real(), real())
