"""Moments of answered requests for very many rows: ten million in a fraction of a second.

The same numbers as `abswitch.store.moments`, for values that the engine records itself (not scorers'), in the form that
a column store adds up fastest: plain sums of doubles, shifted by a typical value so that squares do not cancel. And for
requests that belong to units, sums over *groups of units*: units are hashed into a few thousand groups, and a group is
analysed as a unit is. Units are independent, so groups are; the variance of a ratio over groups estimates the very
same as over units, known a little less well (with 4,096 groups its standard error is within about 1 %).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.store.columns import ANSWER_COLUMNS
from abswitch.store.moments import Moments, Pair, PairMoments
from abswitch.store.recorder import Recorder

GROUPS = 4096
_SAMPLE_ROWS = 1000
_ARMS = ("stable", "candidate")
_COMPARED = "FROM routes WHERE operation_id = $operation_id AND arm = 'candidate' AND share > 0"
_OF_OPERATION = "FROM requests WHERE operation_id = $operation_id"
_WITHIN = f"arm IN {_ARMS} AND (model_id, route_epoch) IN (SELECT (model_id, epoch) {_COMPARED})"
_ANSWERED = "operation_id = $operation_id AND error_type IS NULL AND NOT fallback"
_ONE = "1.0::DOUBLE"
_ALWAYS = frozenset(
    {_ONE, *(f"({ANSWER_COLUMNS[name]})::DOUBLE" for name in ("latency_s", "queue_s", "output_tokens"))}
)
"""Values that every answered request has."""


class Counts(NamedTuple):
    """Requests of one arm."""

    requests: int
    errored: int
    answered: int


class Edge(NamedTuple):
    """A value of each arm, which others are held against; `name` is one of `ANSWER_COLUMNS`."""

    name: str
    at: Mapping[str, float]

    def columns(self) -> tuple[str, str]:
        """Whether a value is there and up to its arm's edge, and whether it is there: 1 or 0, in SQL."""
        x = _value(self.name)
        *others, (_, last) = [(checks.name("arm", arm), checks.number("edge", at)) for arm, at in self.at.items()]
        cases = " ".join(f"WHEN arm = '{arm}' THEN {_double(at)}" for arm, at in others)
        up_to = f"{x} <= " + (f"CASE {cases} ELSE {_double(last)} END" if others else _double(last))
        if x in _ALWAYS:
            return f"({up_to})::DOUBLE", _ONE
        return f"coalesce({up_to}, FALSE)::DOUBLE", f"({x} IS NOT NULL)::DOUBLE"


@dataclass(frozen=True, slots=True)
class Panel:
    """An operation's answered requests, ready to be added up.

    Attributes:
        counts: by arm; an answer of another version than the assigned one counts as not answered.
    """

    recorder: Recorder
    counts: Mapping[str, Counts]
    _where: str
    _params: Mapping[str, object]

    @classmethod
    def of(cls, recorder: Recorder, operation_id: str) -> Panel:
        """Of the requests that were admitted while the candidate had a share.

        Raises:
            StoreError: the store cannot be read.
        """
        params = {"operation_id": operation_id}
        epochs = {row[0] for row in recorder.rows(f"SELECT DISTINCT epoch {_COMPARED}", params)}
        where = _ANSWERED
        spans = recorder.rows(f"SELECT arm, min(route_epoch), max(route_epoch) {_OF_OPERATION} GROUP BY arm", params)
        if not all(arm in _ARMS and epochs.issuperset(range(low, high + 1)) for arm, low, high in spans):
            where += f" AND {_WITHIN}"  # a filter that is not needed costs as much as the sums
        counts = _counts(recorder, params, "TRUE" if where == _ANSWERED else _WITHIN)
        return cls(recorder, counts, where, params)

    def moments(
        self, names: Sequence[str], *, pairs: Sequence[Pair] = ()
    ) -> dict[str, tuple[dict[str, Moments], dict[Pair, PairMoments]]]:
        """By arm, the moments of values and of pairs, in one pass.

        `Moments.zeros` and `ones` are not counted here (−1).

        Args:
            names: of `abswitch.store.columns.ANSWER_COLUMNS`.
            pairs: of such names, for ratios and covariates; only requests that have both count.

        Raises:
            InvalidInput: an unknown name.
            StoreError: the store cannot be read.
        """
        pairs = tuple(dict.fromkeys(pairs))
        names = _known((*names, *(name for pair in pairs for name in pair)))
        if not names:
            return {arm: ({}, {}) for arm in self.counts}
        shifts = self._shifts(names)
        x = {name: f"(({ANSWER_COLUMNS[name]})::DOUBLE - {_double(shifts[name])})" for name in names}
        asked = [
            part for name in names for part in (f"count({x[name]})", f"sum({x[name]})", f"sum({x[name]} * {x[name]})")
        ]
        asked += [part for u, v in pairs for part in (f"count({x[u]} * {x[v]})", f"sum({x[u]} * {x[v]})")]
        found = {str(arm): _Sums(names, pairs, cells) for arm, *cells in self._by_arm(asked)}
        partial = [pair for pair in pairs if not all(sums.is_whole(pair) for sums in found.values())]
        exact = self._partial_pairs(partial, x)
        return {
            arm: (
                {name: _moments(sums.values[name], shifts[name]) for name in names},
                {
                    (u, v): _pair_moments(exact.get((arm, u, v)) or sums.six(u, v), shifts[u], shifts[v])
                    for u, v in pairs
                },
            )
            for arm, sums in found.items()
        }

    def _by_arm(self, asked: Sequence[str]) -> list[tuple[Any, ...]]:
        return self.recorder.rows(
            f"SELECT arm, {', '.join(asked)} FROM requests WHERE {self._where} GROUP BY arm", self._params
        )

    def _partial_pairs(self, pairs: Sequence[Pair], x: Mapping[str, str]) -> dict[tuple[str, str, str], list[float]]:
        """Sums over requests that have both values, for pairs of which some have only one."""
        exact = {}
        for u, v in pairs:
            for arm, *cells in self._by_arm(_pair_sums(x[u], x[v])):
                exact[str(arm), u, v] = [cell or 0.0 for cell in cells]
        return exact

    def grouped(
        self, pairs: Sequence[Pair] = (), below: Sequence[Edge] = (), *, groups: int = GROUPS
    ) -> dict[str, tuple[dict[Pair, PairMoments], list[PairMoments]]]:
        """By arm, the moments of sums over groups of units, in one pass.

        Args:
            pairs: of names (`count` stands for 1 per request): a ratio's numerator and denominator.
            below: per edge, (values up to the edge, values) are added up: how `below` and `below_median` of
                `abswitch.stats.quantiles.clustered_quantile_ranks` are made.
            groups: that units are hashed into, 2 to 65,536, a power of two.

        Raises:
            InvalidInput: an unknown name, or another number of groups.
            StoreError: the store cannot be read.
        """
        pairs = tuple(dict.fromkeys(pairs))
        couples = [(_value(x), _value(y)) for x, y in pairs] + [edge.columns() for edge in below]
        if not couples:
            return {}
        return {
            str(arm): (dict(zip(pairs, found, strict=False)), found[len(pairs) :])
            for arm, found in self._grouped(couples, groups)
        }

    def values_at(self, name: str, ranks: Mapping[str, Sequence[int]]) -> dict[str, list[float]]:
        """The values at ranks (1 is the least) of each arm's sorted values, in one pass.

        Args:
            ranks: by arm.

        Raises:
            InvalidInput: an unknown name, or a rank that there is not.
            StoreError: the store cannot be read.
        """
        column = _value(name)
        n = {arm: counts.answered for arm, counts in self.counts.items()}
        if column not in _ALWAYS:
            n = {str(arm): int(count) for arm, count in self._by_arm([f"count({column})"])}
        shares = sorted({(rank - 0.5) / n[arm] for arm in ranks for rank in _ranks(ranks[arm], n.get(arm, 0))})
        if not shares:
            return {arm: [] for arm in ranks}
        found = {str(arm): values for arm, values in self._by_arm([f"quantile_disc({column}, {shares!r})"])}
        return {arm: [float(found[arm][shares.index((rank - 0.5) / n[arm])]) for rank in ranks[arm]] for arm in ranks}

    def _shifts(self, names: Sequence[str]) -> dict[str, float]:
        """A typical value of each, from the first rows; any would do, and a near one keeps the most digits."""
        means = ", ".join(f"avg({ANSWER_COLUMNS[name]})" for name in names)
        first = f"(SELECT * FROM requests WHERE {self._where} LIMIT {_SAMPLE_ROWS})"
        cells = self.recorder.rows(f"SELECT {means} FROM {first}", self._params)[0]
        return {name: 0.0 if cell is None else float(cell) for name, cell in zip(names, cells, strict=True)}

    def _grouped(self, couples: Sequence[tuple[str, str]], groups: int) -> list[tuple[str, list[PairMoments]]]:
        checks.integer("groups", groups, low=2, high=65_536)
        if groups & (groups - 1):
            raise InvalidInput("groups", groups, "a power of two")
        sides = [(_total(x, y), _total(y, x)) for x, y in couples]
        # Each sum once: the same one takes part in several couples.
        named = {total: f"s{i}" for i, total in enumerate(dict.fromkeys(one for both in sides for one in both))}
        sums = ", ".join(f"{total} AS {alias}" for total, alias in named.items())
        by_arm = ", ".join(_over_groups(named[x], named[y]) for x, y in sides)
        part = f"hash(unit_id) & {groups - 1} AS part"
        inner = f"SELECT arm, {part}, {sums} FROM requests WHERE {self._where} GROUP BY ALL"
        rows = self.recorder.rows(f"SELECT arm, {by_arm} FROM ({inner}) GROUP BY arm", self._params)
        return [(arm, [_six(cells[at : at + 6]) for at in range(0, len(cells), 6)]) for arm, *cells in rows]


def _counts(recorder: Recorder, params: Mapping[str, object], within: str) -> dict[str, Counts]:
    requests = recorder.rows(
        f"SELECT arm, count(*), count(*) FILTER (error_type IS NULL AND NOT fallback) {_OF_OPERATION} AND {within} "
        "GROUP BY arm",
        params,
    )
    errors = (
        f"SELECT arm, count(*) {_OF_OPERATION} AND {within} AND error_type IS NOT NULL AND error_type <> 'Cancelled'"
    )
    errored = dict(recorder.rows(f"{errors} GROUP BY arm", params))
    return {arm: Counts(n, errored.get(arm, 0), answered) for arm, n, answered in requests}


def _double(value: float) -> str:
    """A number in SQL; by itself 0.6376945620495101 would be a DECIMAL, and converted again for every row."""
    return f"{value!r}::DOUBLE"


def _known(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(checks.one_of("name", name, ANSWER_COLUMNS) for name in dict.fromkeys(names))


def _value(name: str) -> str:
    return _ONE if name == "count" else f"({ANSWER_COLUMNS[_known((name,))[0]]})::DOUBLE"


def _ranks(ranks: Sequence[int], n: int) -> Sequence[int]:
    for rank in ranks:
        if not n:
            raise InvalidInput("ranks", rank, "none, as there are no values")
        checks.integer("ranks", rank, low=1, high=n)
    return ranks


def _total(x: str, y: str) -> str:
    """The sum of x where y is there, too: adding 0 times the other makes a value NULL where the other is."""
    if x == _ONE and y in _ALWAYS:
        return "count(*)::DOUBLE"
    return f"sum({x})" if y in _ALWAYS else f"sum({x} + 0 * {y})"


def _over_groups(x: str, y: str) -> str:
    return f"count({x}), favg({x}), favg({y}), var_samp({x}), var_samp({y}), covar_samp({x}, {y})"


def _pair_sums(x: str, y: str) -> list[str]:
    """Of rows that have both: adding 0 times the other makes a value NULL where the other is."""
    u, v = f"({x} + 0 * {y})", f"({y} + 0 * {x})"
    return [f"count({x} * {y})", f"sum({u})", f"sum({v})", f"sum({u} * {u})", f"sum({v} * {v})", f"sum({x} * {y})"]


class _Sums:
    """One arm's sums: of each value (count, sum, squares), and of each pair (count, products)."""

    def __init__(self, names: Sequence[str], pairs: Sequence[Pair], cells: Sequence[float | None]) -> None:
        left = iter(cells)
        self.values = {name: [next(left) or 0.0 for _ in range(3)] for name in names}
        self.products = {pair: [next(left) or 0.0 for _ in range(2)] for pair in pairs}

    def is_whole(self, pair: Pair) -> bool:
        """Every request that has one of the two values has the other, so sums of each are sums of both."""
        return self.values[pair[0]][0] == self.values[pair[1]][0] == self.products[pair][0]

    def six(self, u: str, v: str) -> list[float]:
        """What `_pair_sums` asks for, of a pair that is whole."""
        (n, x, xx), (_, y, yy), (_, xy) = self.values[u], self.values[v], self.products[u, v]
        return [n, x, y, xx, yy, xy]


def _moments(sums: Sequence[float], shift: float) -> Moments:
    n, total, squares = sums
    if not n:
        return Moments(0, -1, -1, math.nan, math.nan)
    return Moments(int(n), -1, -1, shift + total / n, _spread(n, total, total, squares))


def _pair_moments(sums: Sequence[float], shift_x: float, shift_y: float) -> PairMoments:
    n, x, y, xx, yy, xy = sums
    if not n:
        return PairMoments(0, *(math.nan,) * 5)
    spreads = _spread(n, x, x, xx), _spread(n, y, y, yy), _spread(n, x, y, xy)
    return PairMoments(int(n), shift_x + x / n, shift_y + y / n, *spreads)


def _spread(n: float, x: float, y: float, xy: float) -> float:
    """Sample (co)variance, divisor n − 1, from sums of shifted values."""
    return (xy - x * y / n) / (n - 1) if n > 1 else math.nan


def _six(cells: Sequence[float | None]) -> PairMoments:
    n, *rest = cells
    return PairMoments(int(n or 0), *(math.nan if cell is None else float(cell) for cell in rest))
