"""What is counted of an operation's requests, by arm; and the moments that sums over requests and units come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from abswitch.store.columns import ANSWER_COLUMNS, ARMS, ASSIGNED_COLUMNS, ValueColumns
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
class ArmCounts:
    """One arm's counts.

    Attributes:
        requests, units: assigned to the arm.
        answered_units: units with an answer of the assigned version; what answer metrics are computed from.
        repeated_units: units with more than one request, whatever became of it: a retry is no independent trial.
        answered, errored, cancelled, fallbacks: requests (a fallback may also be errored).
        scorer_failures: by scorer, answers that it raised for.
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


def arm_counts(
    recorder: Recorder, operation_id: str, names: Sequence[str] = (), *, arms: Sequence[str] = ARMS
) -> dict[str, ArmCounts]:
    """Counts of every arm that was assigned a request while both arms were being compared.

    Args:
        names: values, see `abswitch.store.columns`; failures are counted of those that are scorers'.

    Raises:
        InvalidInput: unknown name.
        StoreError: the store cannot be read.
    """
    scorers = [name for name in names if name not in {*ANSWER_COLUMNS, *ASSIGNED_COLUMNS}]
    columns = ValueColumns(recorder, operation_id, scorers, arms=arms)
    failures = [columns.failures(scorer) for scorer in columns.scorers]
    kinds = ("answered", "errored", "cancelled", "fallback")
    per_unit = [f"count(*) FILTER ({kind}) AS {kind}" for kind in kinds]
    per_unit += [f"coalesce(sum({failure}), 0) AS {failure}" for failure in failures]
    asked = ["sum(requests)", "count(*)", "count(*) FILTER (answered > 0)", "count(*) FILTER (requests > 1)"]
    asked += [f"sum({name})" for name in (*kinds, *failures)]
    rows = recorder.rows(
        f"""{columns.with_clause}, unit_rows AS (
  SELECT arm, count(*) AS requests, {", ".join(per_unit)} FROM value_rows GROUP BY arm, unit_id
)
SELECT arm, {", ".join(asked)} FROM unit_rows GROUP BY arm ORDER BY arm""",
        columns.params,
    )
    return {str(arm): _arm([int(cell) for cell in cells], columns.scorers) for arm, *cells in rows}


def crossed_units(recorder: Recorder, operation_id: str, *, arms: Sequence[str] = ARMS) -> int:
    """Units that were assigned to both arms."""
    columns = ValueColumns(recorder, operation_id, (), arms=arms)
    per_unit = "SELECT unit_id FROM value_rows GROUP BY unit_id HAVING count(DISTINCT arm) > 1"
    return int(recorder.rows(f"{columns.with_clause} SELECT count(*) FROM ({per_unit})", columns.params)[0][0])


def _arm(cells: Sequence[int], scorers: Sequence[str]) -> ArmCounts:
    """Reads the cells in the order in which `arm_counts` asks for them."""
    requests, units, answered_units, repeated_units, answered, errored, cancelled, fallbacks, *failures = cells
    return ArmCounts(
        requests=requests,
        units=units,
        answered_units=answered_units,
        repeated_units=repeated_units,
        answered=answered,
        errored=errored,
        cancelled=cancelled,
        fallbacks=fallbacks,
        scorer_failures=dict(zip(scorers, failures, strict=True)),
    )
