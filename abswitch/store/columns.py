"""The values that metrics are made of, as SQL over one row per request of an operation.

Every identifier in the SQL comes from this module; scorers' names and the operation's id travel as parameters.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from abswitch.domain import CANCELLED
from abswitch.errors import InvalidInput
from abswitch.stats.selection import Segments, Where
from abswitch.store.conditions import condition_sql, segment_sql
from abswitch.store.reading import RowSource

_ERROR = f"(error_type IS NOT NULL AND error_type <> '{CANCELLED}')"
_ANSWERED = "(error_type IS NULL AND NOT fallback)"

ANSWER_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "latency_s": "total_s",
        "first_token_s": "first_token_s",
        "queue_s": "queue_s",
        "generation_s": "total_s - first_token_s",
        "output_tokens": "output_tokens",
        "prompt_tokens": "prompt_tokens",
        "truncated": "finish_reason = 'length'",
        "log_latency_s": "CASE WHEN total_s > 0 THEN ln(total_s) END",
        "log_first_token_s": "CASE WHEN first_token_s > 0 THEN ln(first_token_s) END",
        "log_generation_s": "CASE WHEN total_s > first_token_s THEN ln(total_s - first_token_s) END",
    }
)
"""Values of requests that the assigned version answered; fallbacks and errors have none. Logarithms are natural ones,
for heavy tails: their difference is the logarithm of how many times as long."""

ASSIGNED_COLUMNS: Mapping[str, str] = MappingProxyType({"error": _ERROR, "fallback": "fallback"})
"""Values of every assigned request. A version that dies before its first token has fallbacks where it has no errors."""


ADMISSION_COLUMNS: Mapping[str, str] = MappingProxyType(
    {"step": "step::DOUBLE", "admitted_at_s": "admitted_at_s", "unit_id": "unit_id"}
)
"""What is known of every request before it is answered; for conditions, segments and covariates."""

LARGEST = 1e100
"""Numbers beyond this cannot be squared and summed: failed measurements, as what is not finite."""
ARMS = ("stable", "candidate")
"""The arms of a comparison; of several candidates the others are `candidate-2` and so on."""
_EXPOSED = """arm IN ({}) AND (model_id, route_epoch) IN (
    SELECT (model_id, epoch) FROM routes WHERE operation_id = $operation_id AND arm = 'candidate' AND share > 0
  )"""


class Batch(NamedTuple):
    """Some rows of the tables, by row number: requests above `after` up to `until`, scores above `scores_after`."""

    after: int
    until: int
    scores_after: int


class ValueColumns:
    """The `WITH` clause that gives one row per request with a DOUBLE column per value, NULL where it has none.

    Values that are not finite (a scorer's NaN, say) are NULL: a failed measurement, never a number.

    Args:
        recorder: the store.
        operation_id: whose requests; None: those that `rows` says, of whatever operation or none.
        names: values that metrics ask for; scorers, or the columns above.
        where: conditions that requests must fulfil.
        segments: gives each row the name of its segment; without them it has the segment ''.
        largest: segments that keep their names, see `segment_sql`.
        rows: SQL condition of the requests that count; by default those of both arms that were admitted while the
            candidate had a share. An operation's last snapshot, which sends everybody to one version, belongs to it,
            too, but compares nothing.
        keys: columns of `requests` that the rows keep, beside the arm and the unit.
        params: what `rows` refers to by `$name`.
        arms: whose requests; of two, the second is called `candidate` whichever it is.
        batch: of those requests only these. Whether the scorers have scored at all is not asked then.

    Raises:
        InvalidInput: a name that is neither; lists what there is.
    """

    def __init__(
        self,
        recorder: RowSource,
        operation_id: str | None,
        names: Iterable[str],
        *,
        where: Sequence[Where] = (),
        segments: Segments | None = None,
        largest: Sequence[str] = (),
        rows: str | None = None,
        keys: Sequence[str] = (),
        params: Mapping[str, object] = MappingProxyType({}),
        arms: Sequence[str] = ARMS,
        batch: Batch | None = None,
    ) -> None:
        whose = rows or "TRUE" if operation_id is None else "operation_id = $operation_id"
        named: dict[str, object] = dict(params) if operation_id is None else {"operation_id": operation_id}
        exposed = _EXPOSED.format(", ".join(f"'{arm}'" for arm in arms))
        self._rows = whose if operation_id is None else f"{whose} AND {rows or exposed}"
        self._keys, self._batch = tuple(keys), batch
        renamed = len(arms) == len(ARMS) and tuple(arms) != ARMS
        self._arm = f"CASE arm WHEN '{arms[1]}' THEN 'candidate' ELSE arm END AS arm" if renamed else "arm"
        self.names = tuple(dict.fromkeys(names))
        selectors = [*(one.column for one in where), *([segments.column] if segments else [])]
        known = {*ANSWER_COLUMNS, *ASSIGNED_COLUMNS, *ADMISSION_COLUMNS}
        self.scorers = tuple(name for name in dict.fromkeys((*self.names, *selectors)) if name not in known)
        if batch is None:
            self._check_scorers(recorder, whose, named)
        self._condition, conditions = condition_sql(where, self._source)
        self._segment, labels = segment_sql(segments, self._source, largest) if segments else ("''", {})
        self._params = {**named, **params} | conditions | labels

    def _check_scorers(self, recorder: RowSource, whose: str, params: Mapping[str, object]) -> None:
        if not self.scorers:
            return
        scored, answered = _scorers(recorder, whose, params)
        for name in self.scorers:
            if answered and name not in scored:  # with no answer at all a scorer had nothing to score: that is no data
                raise InvalidInput("metric", name, allowed_columns(name, scored))

    @property
    def params(self) -> dict[str, object]:
        """Parameters of `with_clause`."""
        named = {f"scorer_{i}": name for i, name in enumerate(self.scorers)}
        return {**self._params, **named}

    def column(self, name: str) -> str:
        """The column that holds a value."""
        return f"value_{self.names.index(name)}"

    def failures(self, scorer: str) -> str:
        """The column that counts how often a scorer raised for a request's answer."""
        return f"failures_{self.scorers.index(scorer)}"

    @property
    def with_clause(self) -> str:
        """`WITH …`, whose last table is `value_rows`: arm, unit_id, segment, what became of the request, the values."""
        values = "".join(f",\n    {_finite(self._value(name))} AS {self.column(name)}" for name in self.names)
        values += "".join(f",\n    {extra}" for extra in (*map(self.failures, self.scorers), *self._keys))
        one = self._batch
        batch = "" if one is None else f" AND requests.rowid > {one.after:d} AND requests.rowid <= {one.until:d}"
        return f"""{self._scores}value_rows AS (
  SELECT {self._arm}, unit_id, {self._segment} AS segment, fallback,
    {_ANSWERED} AS answered, coalesce({_ERROR}, FALSE) AS errored,
    coalesce(error_type = '{CANCELLED}', FALSE) AS cancelled{values}
  FROM requests {"LEFT JOIN scored USING (request_id)" if self.scorers else ""}
  WHERE {self._rows}{batch}{self._condition}
)"""

    @property
    def _scores(self) -> str:
        """One row per scored request; of several scores by one scorer the latest counts."""
        if not self.scorers:
            return "WITH "
        latest = ",\n    ".join(
            f"arg_max(value, scored_at_s) FILTER (scorer = $scorer_{i}) AS score_{i},\n"
            f"    count(*) FILTER (scorer = $scorer_{i} AND NOT coalesce(abs(value) <= {LARGEST}, FALSE))\n"
            f"      AS failures_{i}"
            for i in range(len(self.scorers))
        )
        batch = "" if self._batch is None else f"WHERE rowid > {self._batch.scores_after:d} "
        return f"WITH scored AS (\n  SELECT request_id, {latest}\n  FROM scores {batch}GROUP BY request_id\n),\n"

    def _value(self, name: str) -> str:
        if name in ASSIGNED_COLUMNS:
            return f"({ASSIGNED_COLUMNS[name]})::DOUBLE"
        if name in ADMISSION_COLUMNS:
            return ADMISSION_COLUMNS[name]
        source = ANSWER_COLUMNS.get(name) or f"score_{self.scorers.index(name)}"
        return f"CASE WHEN {_ANSWERED} THEN ({source})::DOUBLE END"

    def _source(self, name: str) -> str:
        """What conditions and segments read."""
        return ADMISSION_COLUMNS["unit_id"] if name == "unit_id" else _finite(self._value(name))


def _finite(sql: str) -> str:
    return f"CASE WHEN abs({sql}) <= {LARGEST} THEN {sql} END"


def _scorers(recorder: RowSource, whose: str, params: Mapping[str, object]) -> tuple[list[str], bool]:
    """The scorers that scored an answer of these requests (or raised), and whether there was an answer."""
    mine = f"SELECT request_id FROM requests WHERE {whose} AND {_ANSWERED}"
    rows = recorder.rows(
        f"SELECT DISTINCT scorer FROM scores SEMI JOIN ({mine}) USING (request_id) ORDER BY scorer", params
    )
    return [row[0] for row in rows], bool(recorder.rows(f"{mine} LIMIT 1", params))


def allowed_columns(name: str, scorers: Sequence[str]) -> str:
    """What a metric may name, in words, with the closest match to `name`."""
    columns = [*ANSWER_COLUMNS, *ASSIGNED_COLUMNS]
    close = difflib.get_close_matches(name, [*scorers, *columns], n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"a scorer ({', '.join(scorers) or 'none has scored yet'}) or one of {', '.join(columns)}{hint}"
