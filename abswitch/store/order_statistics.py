"""Summaries of quantiles by SQL: the sorted values around each, counted; never all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from abswitch.stats.metric_parts import Unit
from abswitch.stats.metrics import Quantile
from abswitch.stats.quantile_summary import QuantileSummary, kept_ranks
from abswitch.stats.quantiles import quantile_rank
from abswitch.stats.summaries import RatioSummary
from abswitch.store.columns import ValueColumns
from abswitch.store.metric_moments import Cell
from abswitch.store.reading import RowSource

Shares = tuple[RatioSummary, RatioSummary]


class SortedValues:
    """One column's values by arm and segment, in order, without leaving the database.

    Args:
        metric: whose column; by unit each unit's mean is one value.
        by_unit: units have several requests.
    """

    def __init__(self, recorder: RowSource, columns: ValueColumns, metric: Quantile, *, by_unit: bool) -> None:
        self._recorder, self._params = recorder, columns.params
        self._clustered = by_unit and metric.unit == Unit.REQUEST
        x = columns.column(metric.column)
        one = f"SELECT arm, segment, unit_id, {x} AS x FROM value_rows WHERE {x} IS NOT NULL"
        if by_unit and not self._clustered:
            one = f"SELECT arm, segment, unit_id, favg(x) AS x FROM ({one}) GROUP BY arm, segment, unit_id"
        self._table = f"{columns.with_clause}, sorted_values AS ({one})"
        self._q = metric.q
        self.counts: Mapping[Cell, int] = {
            (arm, segment): n
            for arm, segment, n in self._rows("SELECT arm, segment, count(*) FROM sorted_values GROUP BY arm, segment")
        }

    def summaries(self) -> dict[Cell, QuantileSummary]:
        """A summary for each arm and segment that has values.

        Raises:
            StoreError: the store cannot be read.
        """
        shares = self._shares() if self._clustered else {}
        ends = {cell: kept_ranks(n, self._q, shares.get(cell)) for cell, n in self.counts.items()}
        at = self._values_at(ends)
        window = self._window({cell: (found[0], found[-1]) for cell, found in at.items()})
        return {
            cell: QuantileSummary(
                q=self._q,
                n=n,
                below=sum(count for value, count in window[cell] if value is None),
                values=tuple(value for value, _ in window[cell] if value is not None),
                counts=tuple(count for value, count in window[cell] if value is not None),
                shares=shares.get(cell),
            )
            for cell, n in self.counts.items()
        }

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self._recorder.rows(f"{self._table} {sql}", self._params)

    def _values_at(self, ranks: Mapping[Cell, Sequence[int]]) -> dict[Cell, list[float]]:
        """The value of rank r of n is `quantile_disc(x, (r - 0.5) / n)`; all cells' ranks in one pass."""
        shares = {cell: [(rank - 0.5) / self.counts[cell] for rank in ranks[cell]] for cell in ranks}
        asked = sorted({share for several in shares.values() for share in several})
        if not asked:
            return {}
        rows = self._rows(f"SELECT arm, segment, quantile_disc(x, {asked!r}) FROM sorted_values GROUP BY arm, segment")
        found = {(arm, segment): values for arm, segment, values in rows}
        return {cell: [float(found[cell][asked.index(share)]) for share in shares[cell]] for cell in ranks}

    def _window(self, ends: Mapping[Cell, tuple[float, float]]) -> dict[Cell, list[tuple[float | None, int]]]:
        """Each value between the ends with its count, rising; those below counted together, as None."""
        window: dict[Cell, list[tuple[float | None, int]]] = {cell: [] for cell in ends}
        if not ends:
            return window
        rows = self._rows(
            f"""SELECT arm, segment, CASE WHEN x >= low THEN x END AS kept, count(*)
  FROM sorted_values JOIN ({_table(ends)}) ends USING (arm, segment) WHERE x <= high
  GROUP BY arm, segment, kept ORDER BY arm, segment, kept"""
        )
        for arm, segment, value, count in rows:
            window[arm, segment].append((value, count))
        return window

    def _shares(self) -> dict[Cell, Shares]:
        """Of each unit, how many values are up to the quantile and up to the median, and how many there are."""
        ranks = {cell: [_rank(n, self._q), _rank(n, 0.5)] for cell, n in self.counts.items()}
        edges = {cell: (found[0], found[1]) for cell, found in self._values_at(ranks).items()}
        if not edges:
            return {}
        over_units = ", ".join(
            f"favg({x}), favg(y), var_samp({x}), var_samp(y), covar_samp({x}, y)" for x in ("up_to", "up_to_median")
        )
        rows = self._rows(
            f"""SELECT arm, segment, count(*), {over_units} FROM (
  SELECT arm, segment, count(*) FILTER (x <= low)::DOUBLE AS up_to, count(*) FILTER (x <= high)::DOUBLE AS up_to_median,
    count(*)::DOUBLE AS y
  FROM sorted_values JOIN ({_table(edges)}) edges USING (arm, segment) GROUP BY arm, segment, unit_id
) GROUP BY arm, segment"""
        )
        return {
            (arm, segment): (RatioSummary.from_moments(n, *cells[:5]), RatioSummary.from_moments(n, *cells[5:]))
            for arm, segment, n, *cells in rows
        }


def _rank(n: int, q: float) -> int:
    return quantile_rank(n, q) or 1


def _table(ends: Mapping[Cell, tuple[float, float]]) -> str:
    """Two numbers for each arm and segment, as SQL; segments' names are texts of users and quoted."""
    rows = ", ".join(
        f"({_text(arm)}, {_text(segment)}, {low!r}::DOUBLE, {high!r}::DOUBLE)"
        for (arm, segment), (low, high) in ends.items()
    )
    return f"SELECT * FROM (VALUES {rows}) t(arm, segment, low, high)"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
